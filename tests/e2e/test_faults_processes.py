"""Services killed, stopped and paused under load: their work moves on, and nothing happens twice (P2 to P7)."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from confluent_kafka import TopicPartition

from orderstream.kafka.client import consumer
from orderstream.order_service.handler import OrderHandler
from orderstream.settings import SERVICES
from tests.e2e.faults import Harmed, harmed, orders_flowing
from tests.support.waiting import wait_until

BACK_SECONDS = 60
MOVE_SECONDS = 15
"""A group gives up a silent member after 10 s."""
PAUSED_SECONDS = 12


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harmed]:
    """One stack for all of these, two of each worker."""
    workers = [name for name in SERVICES if name != "api-gateway"]
    replicas = {f"REPLICAS_{name.replace('-', '_').upper()}": "2" for name in workers}
    with harmed(tmp_path_factory.mktemp("processes"), **replicas) as running:
        yield running


@pytest.fixture
def services(target: Harmed) -> Iterator[Harmed]:
    """The stack; its books must balance after the test."""
    yield target
    target.balanced()


def test_the_work_of_killed_workers_moves_on_to_their_replicas(services: Harmed) -> None:
    with orders_flowing(services, 1) as flowing:
        services.kill("payment-worker", "inventory-worker", "order-service", "outbox-relay")
    services.all_confirmed(flowing, MOVE_SECONDS, "their partitions have moved")


def test_all_services_killed_at_once(services: Harmed) -> None:
    placed = services.place(20)
    before = services.pids()
    services.kill(*before)
    wait_until(lambda: all(services.is_back(one, pid) for one, pid in before.items()), BACK_SECONDS, "all are back")
    services.all_confirmed(placed, BACK_SECONDS, "all settle")


def _lag(services: Harmed, group: str) -> int:
    """How many records of its topics a group has not committed yet."""
    reader = consumer(services.settings, group)
    try:
        known = reader.list_topics(timeout=10).topics
        places = [TopicPartition(name, number) for name in OrderHandler.topics for number in known[name].partitions]
        lag = 0
        for place in reader.committed(places, timeout=10):
            _, end = reader.get_watermark_offsets(place, timeout=10)
            lag += end - max(place.offset, 0)
        return lag
    finally:
        reader.close()


def test_a_worker_that_is_asked_to_stop_finishes_what_it_has(services: Harmed) -> None:
    wait_until(lambda: services.serves("order-service"), BACK_SECONDS, "it works")
    pid = services.pid("order-service")
    with orders_flowing(services, 2) as flowing:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: services.is_back("order-service", pid), BACK_SECONDS, "it is started again")
    assert "order-service exited with 0" in services.up.said
    services.all_confirmed(flowing, MOVE_SECONDS, "all settle")
    wait_until(lambda: _lag(services, "order-service") == 0, MOVE_SECONDS, "every offset is committed")


def test_workers_that_sleep_beyond_their_session_do_no_harm(services: Harmed) -> None:
    before = services.pids()
    asleep = services.paused("payment-worker"), services.paused("order-service")
    with orders_flowing(services, PAUSED_SECONDS + 3) as flowing, asleep[0], asleep[1]:
        threading.Event().wait(PAUSED_SECONDS)
    services.all_confirmed(flowing, MOVE_SECONDS, "all settle")
    assert services.pids() == before, "a service was restarted"
