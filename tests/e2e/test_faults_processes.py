"""Services that are killed, stopped or paused under load: other replicas take over their work, once (P2 to P7)."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from confluent_kafka import TopicPartition

from orderstream.kafka.client import consumer
from orderstream.order_service.handler import OrderHandler
from orderstream.settings import SERVICES
from tests.e2e.disturbed import DisturbedSystem, disturbed_system, placing_orders
from tests.support.faults import kill, paused
from tests.support.waiting import wait_until

BACK_SECONDS = 60
MOVE_SECONDS = 20
"""A consumer group removes a silent member after 10 s. The other 10 s are for a busy machine."""
PAUSED_SECONDS = 12


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DisturbedSystem]:
    """One system for all tests of this module, with two replicas of each worker."""
    workers = [name for name in SERVICES if name != "api-gateway"]
    replicas = {f"REPLICAS_{name.replace('-', '_').upper()}": "2" for name in workers}
    with disturbed_system(tmp_path_factory.mktemp("processes"), **replicas) as running:
        yield running


@pytest.fixture
def services(target: DisturbedSystem) -> Iterator[DisturbedSystem]:
    """The system. Every promise must hold after the test."""
    yield target
    target.assert_promises_hold()


def test_replicas_take_over_the_work_of_killed_workers(services: DisturbedSystem) -> None:
    with placing_orders(services, 1) as accepted:
        kill(services.system, "payment-worker", "inventory-worker", "order-service", "outbox-relay")
    services.all_confirmed(accepted, MOVE_SECONDS, "the replicas have taken over the partitions")


def test_orders_settle_after_all_services_were_killed_at_once(services: DisturbedSystem) -> None:
    placed = services.place(20)
    before = services.system.service_pids()
    kill(services.system, *before)
    wait_until(
        lambda: all(services.system.is_back(name, pid) for name, pid in before.items()),
        BACK_SECONDS,
        "all are restarted",
    )
    services.all_confirmed(placed, BACK_SECONDS, "the orders are confirmed")


def _lag(services: DisturbedSystem, group: str) -> int:
    """Return how many records of its topics a group has not committed."""
    reader = consumer(services.system.settings, group)
    try:
        known = reader.list_topics(timeout=10).topics
        partitions = [TopicPartition(name, number) for name in OrderHandler.topics for number in known[name].partitions]
        lag = 0
        for partition in reader.committed(partitions, timeout=10):
            _, end = reader.get_watermark_offsets(partition, timeout=10)
            lag += end - max(partition.offset, 0)
        return lag
    finally:
        reader.close()


def test_a_stopped_worker_finishes_and_commits_its_batch(services: DisturbedSystem) -> None:
    wait_until(lambda: services.system.is_ready("order-service"), BACK_SECONDS, "order-service is ready")
    pid = services.system.pid("order-service")
    with placing_orders(services, 2) as accepted:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: services.system.is_back("order-service", pid), BACK_SECONDS, "it is restarted")
    assert "order-service exited with 0" in services.up.said
    services.all_confirmed(accepted, MOVE_SECONDS, "the orders are confirmed")
    wait_until(lambda: _lag(services, "order-service") == 0, MOVE_SECONDS, "every offset is committed")


def test_workers_paused_beyond_their_session_do_no_harm(services: DisturbedSystem) -> None:
    before = services.system.service_pids()
    payment_worker, order_service = paused(services.system, "payment-worker"), paused(services.system, "order-service")
    with placing_orders(services, PAUSED_SECONDS + 3) as accepted, payment_worker, order_service:
        threading.Event().wait(PAUSED_SECONDS)
    services.all_confirmed(accepted, MOVE_SECONDS, "the orders are confirmed")
    assert services.system.service_pids() == before, "a service was restarted"
