"""Faults of Kafka: the gateway still accepts orders, and all of them settle (P1, P5).

No service may be restarted, and no operator has to act.
"""

from collections.abc import Iterator

import pytest

from orderstream.domain.events import TOPICS
from orderstream.kafka.client import admin
from tests.e2e.disturbed import DisturbedSystem, disturbed_system, placing_orders
from tests.support.faults import delete_topics, kill, paused, wipe_kafka
from tests.support.waiting import wait_until

BACK_SECONDS = 60
SETTLE_SECONDS = 20
"""A consumer group removes silent members after 10 s. The other 10 s are for a busy machine."""
REPLACED_SECONDS = 50
"""A consumer may keep a deleted topic, also after Kafka lost all data. The worker notices it at the first measurement
that is 15 s after a record began to wait, 20 s at most, and replaces the consumer. Then the group forms again."""
HEAL_SECONDS = 90
"""A service repeats an event that was lost with its topic after 30 s. The answer may be lost too."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DisturbedSystem]:
    """One system for all tests of this module, with two replicas of each worker."""
    replicas = dict.fromkeys(("REPLICAS_PAYMENT_WORKER", "REPLICAS_ORDER_SERVICE", "REPLICAS_OUTBOX_RELAY"), "2")
    with disturbed_system(tmp_path_factory.mktemp("kafka"), **replicas) as running:
        yield running


@pytest.fixture
def services(target: DisturbedSystem) -> Iterator[DisturbedSystem]:
    """The system. After the test, no service may have been restarted, and every promise must hold."""
    before = target.system.service_pids()
    yield target
    target.assert_promises_hold()
    assert target.system.service_pids() == before, "a service was restarted"


def _topics(target: DisturbedSystem) -> set[str]:
    client = admin(target.system.settings, "test")
    return set(client.list_topics(timeout=10).topics)


def test_orders_are_accepted_without_kafka_and_settle_after_its_restart(services: DisturbedSystem) -> None:
    services.all_confirmed(services.place(5), 20, "orders settle before the fault")
    before = services.system.pid("kafka")
    with placing_orders(services, 6) as accepted:
        kill(services.system, "kafka")
        placed = services.place(20)
        wait_until(lambda: services.system.is_back("kafka", before), BACK_SECONDS, "Kafka is restarted")
        wait_until(lambda: "kafka is back" in services.up.said, BACK_SECONDS, "Kafka serves again")
    assert accepted
    services.all_confirmed([*placed, *accepted], SETTLE_SECONDS, "the orders are confirmed soon")


def test_orders_are_accepted_while_kafka_hangs(services: DisturbedSystem) -> None:
    with paused(services.system, "kafka"):
        placed = services.try_to_place(5)
        assert len(placed) > 20
    services.all_confirmed(placed, SETTLE_SECONDS, "the orders are confirmed soon")


def test_deleted_topics_are_created_again(services: DisturbedSystem) -> None:
    with placing_orders(services, 10) as accepted:
        delete_topics(services.system)
        wait_until(lambda: set(TOPICS) <= _topics(services), BACK_SECONDS, "the topics exist again")
    assert accepted
    services.all_confirmed(accepted, HEAL_SECONDS, "the orders are confirmed")
    services.all_confirmed(
        services.place(5), REPLACED_SECONDS, "new orders settle after a consumer is replaced at most"
    )


def test_orders_settle_after_kafka_lost_all_data(services: DisturbedSystem) -> None:
    before = services.system.pid("kafka")
    with placing_orders(services, 15) as accepted:
        wipe_kafka(services.system)
        wait_until(lambda: services.system.is_back("kafka", before), BACK_SECONDS, "Kafka is restarted")
    assert accepted
    services.all_confirmed(accepted, HEAL_SECONDS, "the orders are confirmed")
    services.all_confirmed(
        services.place(5), REPLACED_SECONDS, "new orders settle after a consumer is replaced at most"
    )
