"""Faults for a running system. The end-to-end tests and the soak both cause faults with these functions.

The supervisor of the system restarts a process that dies of one.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import KafkaException

from orderstream.domain.events import TOPICS
from orderstream.kafka.client import admin
from orderstream.local.processes.pids import signal_tree
from tests.support.system import System, is_alive

_DELETE_SECONDS = 20
_RESULT_SECONDS = 60


def kill(system: System, *names: str) -> None:
    """Send SIGKILL to these processes and to all their descendants, at the same time."""
    for pid in [system.pid(name) for name in names]:
        signal_tree(pid, signal.SIGKILL)


@contextmanager
def paused(system: System, name: str) -> Iterator[None]:
    """Stop a process and its descendants with SIGSTOP until the block ends. Connections stay open, nothing answers."""
    pid = system.pid(name)
    signal_tree(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_tree(pid, signal.SIGCONT)


def kill_services(system: System) -> None:
    """Send SIGKILL to every process of the five services at the same time."""
    for pid in _living_services(system):
        signal_tree(pid, signal.SIGKILL)


def stop_services(system: System) -> None:
    """Send SIGTERM to every process of the five services: each finishes its work and ends."""
    for pid in _living_services(system):
        signal_if_alive(pid, signal.SIGTERM)


def _living_services(system: System) -> list[int]:
    pids = set(system.service_pids().values())
    return [child.pid for child in system.children.values() if child.pid in pids and is_alive(child)]


def signal_if_alive(pid: int, number: signal.Signals) -> None:
    """Signal one process, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def restart_postgres(system: System) -> None:
    """Stop PostgreSQL in good order, which ends every connection."""
    os.kill(system.pid("postgres"), signal.SIGINT)


def delete_topics(system: System, *, may_be_missing: bool = False) -> None:
    """Delete every topic of events while services read and write them. Raises KafkaException.

    With `may_be_missing`, a topic that an earlier fault removed is no error.
    """
    client = admin(system.settings, "test")
    for future in client.delete_topics(list(TOPICS), operation_timeout=_DELETE_SECONDS).values():
        try:
            future.result(_RESULT_SECONDS)
        except KafkaException as error:
            if not may_be_missing or "UNKNOWN_TOPIC" not in str(error):
                raise


def wipe_kafka(system: System) -> None:
    """Empty Kafka's data directory and kill it: topics, offsets, groups and its identity are lost."""
    empty(system.kafka_data)
    kill(system, "kafka")


def empty(directory: Path) -> None:
    """Remove everything in a directory. A running process sees it vanish at once, because it is moved away first."""
    lost = directory.with_name(f"lost-{time.monotonic_ns()}")
    lost.mkdir()
    for path in directory.iterdir():
        path.rename(lost / path.name)
    shutil.rmtree(lost)
