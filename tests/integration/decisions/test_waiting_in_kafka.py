"""The watchdog leaves an order alone that waits in Kafka, until the workers have passed its events (P5)."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from orderstream.domain.events import Event, Payload, topic_of
from orderstream.kafka.envelope import encode
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import ensure_topics
from orderstream.order_service.consumed import READERS, Consumed, KafkaOffsets
from orderstream.order_service.watchdog import Watchdog, WatchdogSchedule
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.integration.decisions.orders import aborted, authorized, created, place, result, row
from tests.support.waiting import wait_until

DUE = "UPDATE orders SET next_check_at = now() - interval '1 s', nudges = %s, created_at = now() - %s * interval '1 s'"


class Deployment:
    """Topics and groups of this test only, and a watchdog that asks Kafka in each run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.model_copy(update={"kafka_topic_prefix": f"{uuid4().hex[:8]}."})
        ensure_topics(self.settings)
        self._ask = KafkaOffsets(self.settings).ask
        wait_until(self._is_ready, 30, "every partition has a leader")
        self._publisher = Publisher(self.settings, "test")
        self._seconds = 0.0
        self.watchdog = Watchdog(WatchdogSchedule(), Consumed(KafkaOffsets(self.settings).ask, self._clock))

    def _is_ready(self) -> bool:
        try:
            offsets = self._ask()
        except KafkaException:
            return False
        return len({topic for topic, _ in offsets.ends}) == len(
            {event for events in READERS.values() for event in events}
        )

    def _clock(self) -> float:
        self._seconds += 3_600
        return self._seconds

    def publish(self, event: Event[Payload]) -> None:
        """Publish an event."""
        self._publisher.publish([Publication(topic_of(event.type), event.correlation_id, encode(event), [])])

    def consume(self, *groups: str) -> None:
        """Move the offsets of these groups to the ends of their topics."""
        prefix = self.settings.kafka_topic_prefix
        for group in groups:
            client = Consumer({"bootstrap.servers": self.settings.kafka_brokers, "group.id": prefix + group})
            topics = {prefix + topic_of(event) for event in READERS[group]}
            ends = [TopicPartition(*place, end) for place, end in self._ask().ends.items() if place[0] in topics]
            client.commit(offsets=ends, asynchronous=False)
            client.close()


@pytest.fixture
def deployment(settings: Settings) -> Deployment:
    """A deployment without any worker."""
    return Deployment(settings)


def _nudges(connection: Connection) -> tuple[Any, ...]:
    return row(connection, "SELECT status, nudges, (SELECT count(*)::int FROM outbox) FROM orders")


@pytest.mark.parametrize(
    ("event", "group"),
    [
        (created, "payment-worker"),
        (authorized, "inventory-worker"),
        (authorized, "order-service"),
        (lambda order_id: result("inventory.reserved", order_id), "order-service"),
    ],
)
def test_an_order_is_not_nudged_while_its_event_waits_for_a_worker(
    deployment: Deployment, connection: Connection, event: Callable[[str], Event[Payload]], group: str
) -> None:
    order_id = place(connection)
    deployment.publish(event(order_id))
    deployment.consume(*(READERS.keys() - {group}))
    for _ in range(2):
        connection.execute(DUE, (0, 0))
        deployment.watchdog.nudge(connection)
        assert _nudges(connection) == ("PROCESSING", 0, 0)
    deployment.consume(group)
    deployment.watchdog.nudge(connection)
    connection.execute("UPDATE orders SET next_check_at = now() - interval '1 s'")
    deployment.watchdog.nudge(connection)
    assert _nudges(connection) == ("PROCESSING", 1, 1)


def test_an_order_that_waits_in_kafka_does_not_fail_at_its_deadline(
    deployment: Deployment, connection: Connection
) -> None:
    order_id = place(connection)
    deployment.consume(*READERS)
    connection.execute(DUE, (3, 3_600))
    connection.execute("UPDATE orders SET nudged_at = now()")
    deployment.publish(created(order_id))
    for _ in range(2):
        deployment.watchdog.nudge(connection)
        connection.execute("UPDATE orders SET next_check_at = now() - interval '1 s'")
    assert _nudges(connection) == ("PROCESSING", 3, 0)
    deployment.consume("payment-worker")
    deployment.watchdog.nudge(connection)
    connection.execute("UPDATE orders SET next_check_at = now() - interval '1 s'")
    deployment.watchdog.nudge(connection)
    assert _nudges(connection)[0] == "FAILED"


def test_an_order_waits_while_older_events_are_in_the_outbox(deployment: Deployment, connection: Connection) -> None:
    """The relay is behind: it may publish newer events after Kafka has returned the ends."""
    connection.execute(
        "INSERT INTO outbox (topic, order_id, event_id, value, created_at)"
        " VALUES ('order.created.v1', 'another', gen_random_uuid(), '', now() - interval '1 h')"
    )
    place(connection)
    connection.execute(DUE, (0, 60))
    deployment.watchdog.nudge(connection)
    assert _nudges(connection) == ("PROCESSING", 0, 1)
    connection.execute("DELETE FROM outbox")
    connection.execute(DUE, (0, 60))
    deployment.watchdog.nudge(connection)
    assert _nudges(connection) == ("PROCESSING", 1, 1)


def test_an_abort_that_waits_for_a_worker_is_not_repeated(deployment: Deployment, connection: Connection) -> None:
    order_id = place(connection)
    connection.execute("UPDATE orders SET status = 'CANCELLED', aborted_at = now(), next_check_at = now()")
    deployment.publish(aborted(order_id, None))
    deployment.consume("payment-worker", "order-service")
    deployment.watchdog.repeat_aborts(connection)
    assert _nudges(connection)[2] == 0
    deployment.consume("inventory-worker")
    deployment.watchdog.repeat_aborts(connection)
    connection.execute("UPDATE orders SET next_check_at = now()")
    deployment.watchdog.repeat_aborts(connection)
    assert _nudges(connection)[2] == 1


def test_orders_are_nudged_after_their_topics_were_deleted(settings: Settings, connection: Connection) -> None:
    settings = settings.model_copy(update={"kafka_topic_prefix": f"{uuid4().hex[:8]}."})
    place(connection)
    connection.execute(DUE, (0, 60))
    Watchdog(WatchdogSchedule(), Consumed(KafkaOffsets(settings).ask)).nudge(connection)
    assert _nudges(connection) == ("PROCESSING", 1, 1)


def test_no_order_is_changed_while_kafka_does_not_answer(settings: Settings, connection: Connection) -> None:
    place(connection)
    connection.execute(DUE, (3, 3_600))
    before = connection.execute("SELECT * FROM orders").fetchall()
    away = settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"})
    watchdog = Watchdog(WatchdogSchedule(), Consumed(KafkaOffsets(away).ask))
    for _ in range(2):
        watchdog.nudge(connection)
        watchdog.repeat_aborts(connection)
    assert connection.execute("SELECT * FROM orders").fetchall() == before
