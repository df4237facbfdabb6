"""Kafka starts from every path, and prepares the topic of the consumer groups."""

import os
import threading
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from orderstream.local.processes import ports
from orderstream.local.processes.child import Child
from orderstream.local.processes.pids import start_time
from orderstream.local.processes.registry import ProcessRegistry
from orderstream.local.processes.service import InstallContext
from orderstream.local.processes.state import Run, StateDir, StateRecord, shared_cache
from orderstream.local.servers import kafka_jars as jars
from orderstream.local.servers.kafka import Kafka
from orderstream.local.servers.server_home import choose, remove
from tests.support.servers import Server
from tests.support.waiting import wait_until


@pytest.mark.parametrize("name", ["josé", "a \\u0041 b", "日本 😀"])
def test_kafka_accepts_a_path_with_any_characters(name: str, tmp_path: Path) -> None:
    never = threading.Event()
    jars.install(shared_cache() / "jars", lambda _: None, never)
    home = tmp_path / name
    (home / "cache").mkdir(parents=True)
    (home / "cache" / "jars").symlink_to(shared_cache() / "jars")
    state = StateDir(home / "state")
    state.open()
    registry = ProcessRegistry(state, StateRecord(run=Run(os.getpid(), start_time(os.getpid()) or "")))
    server_home = choose(state, lambda _: None)
    kafka = Kafka(9_092, 9_093, server_home, home / "cache")
    kafka.install(InstallContext(state, registry, lambda _: None, never))
    assert (server_home.folder("kafka") / "data" / "meta.properties").exists()
    assert sorted(path.name for path in home.iterdir()) == ["cache", "state"]
    remove(state)


def test_a_new_broker_creates_the_topic_for_consumer_offsets_before_any_group_exists(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    state.open()
    chosen = ports.pick(("kafka", "controller"), {})
    registry = ProcessRegistry(state, StateRecord(chosen, Run(os.getpid(), start_time(os.getpid()) or "")))
    kafka = Kafka(chosen["kafka"], chosen["controller"], choose(state, lambda _: None), shared_cache())
    context = InstallContext(state, registry, lambda _: None, threading.Event())
    server = Server(kafka, Child("kafka", state.log("kafka"), registry), context)
    try:
        server.start()
        client = AdminClient({"bootstrap.servers": kafka.brokers, "log_level": 0})
        wait_until(lambda: "__consumer_offsets" in client.list_topics(timeout=20).topics, 60, "the topic exists")
    finally:
        server.kill()
        remove(state)
