"""Kafka killed, paused, emptied and wiped under a running stack: orders are accepted, and all of them settle (P1, P5).

No service may need a restart for it, and nobody's hand.
"""

from collections.abc import Iterator

import pytest

from orderstream.domain.events import TOPICS
from orderstream.kafka.client import admin
from tests.e2e.faults import Harmed, harmed, orders_flowing
from tests.support.waiting import wait_until

BACK_SECONDS = 60
SETTLE_SECONDS = 20
"""10 s, the time in which a group gives up members that it has lost sight of, and as much again for a busy machine."""
HEAL_SECONDS = 90
"""An event that was lost with its topic is sent again after 30 s; its answer may have been lost as well."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harmed]:
    """One stack for all of these, two of each worker."""
    replicas = dict.fromkeys(("REPLICAS_PAYMENT_WORKER", "REPLICAS_ORDER_SERVICE", "REPLICAS_OUTBOX_RELAY"), "2")
    with harmed(tmp_path_factory.mktemp("kafka"), **replicas) as running:
        yield running


@pytest.fixture
def services(target: Harmed) -> Iterator[Harmed]:
    """The stack, whose services must be the same processes after the test as before, and whose books must balance."""
    before = target.pids()
    yield target
    target.balanced()
    assert target.pids() == before, "a service was restarted"


def _topics(target: Harmed) -> set[str]:
    client = admin(target.settings, "test")
    return set(client.list_topics(timeout=10).topics)


def test_orders_are_accepted_while_kafka_is_dead_and_settle_when_it_is_back(services: Harmed) -> None:
    services.all_confirmed(services.place(5), 20, "orders settle before anything happens")
    before = services.pid("kafka")
    with orders_flowing(services, 6) as flowing:
        services.kill("kafka")
        placed = services.place(20)
        wait_until(lambda: services.is_back("kafka", before), BACK_SECONDS, "Kafka is started again")
        wait_until(lambda: "kafka is back" in services.up.said, BACK_SECONDS, "Kafka serves again")
    assert flowing
    services.all_confirmed([*placed, *flowing], SETTLE_SECONDS, "all settle soon")


def test_orders_are_accepted_while_kafka_hangs(services: Harmed) -> None:
    with services.paused("kafka"):
        placed = services.try_to_place(5)
        assert len(placed) > 20
    services.all_confirmed(placed, SETTLE_SECONDS, "all settle soon")


def test_topics_that_were_deleted_are_made_again(services: Harmed) -> None:
    client = admin(services.settings, "test")
    with orders_flowing(services, 10) as flowing:
        for future in client.delete_topics(list(TOPICS), operation_timeout=10).values():
            future.result(10)
        wait_until(lambda: set(TOPICS) <= _topics(services), BACK_SECONDS, "the topics are made again")
    assert flowing
    services.all_confirmed(flowing, HEAL_SECONDS, "all settle")
    services.all_confirmed(services.place(5), SETTLE_SECONDS, "new orders settle at once")


def test_all_settles_after_kafka_has_lost_its_data(services: Harmed) -> None:
    before = services.pid("kafka")
    with orders_flowing(services, 15) as flowing:
        services.wipe_kafka()
        wait_until(lambda: services.is_back("kafka", before), BACK_SECONDS, "Kafka is started again")
    assert flowing
    services.all_confirmed(flowing, HEAL_SECONDS, "all settle")
    services.all_confirmed(services.place(5), SETTLE_SECONDS, "new orders settle at once")
