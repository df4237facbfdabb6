"""A batch of early records waits a moment for the record that usually follows them, and no other batch does."""

from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import Consumer
from msgspec import structs

from orderstream.domain.events import Event, InventoryReserved, Payload, StockLine, build, topic_of
from orderstream.kafka import client
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.process.gathering import OF_RECORDS
from orderstream.settings import Settings
from orderstream.worker import subscription
from orderstream.worker.handler import BatchResult
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import IN, Recorder
from tests.integration.worker.running import running
from tests.support.samples import AT
from tests.support.topics import publish_events
from tests.support.waiting import wait_until

FOLLOWING = topic_of("inventory.reserved")
LONG_SECONDS = 60.0


class _Early(Recorder):
    """A handler for which the records of IN are early. It emits nothing."""

    topics = (IN, FOLLOWING)
    emits = ()

    def __init__(self, group: str) -> None:
        super().__init__(group)
        self.gathering = structs.replace(OF_RECORDS, early_topics=(IN,))

    def decide(self, tx: Connection, batch: Sequence[Received], prepared: None, /) -> BatchResult:
        super().decide(tx, batch, prepared)
        return BatchResult()


class _NotesMessages:
    """A consumer that notes the messages that it returns."""

    def __init__(self, consumer: Consumer, received: list[Any]) -> None:
        self._consumer = consumer
        self._received = received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def poll(self, seconds: float) -> Any:
        message = self._consumer.poll(seconds)
        if message is not None:
            self._received.append(message)
        return message

    def consume(self, limit: int, seconds: float) -> list[Any]:
        messages = self._consumer.consume(limit, seconds)
        self._received += messages
        return messages


def _following(event: Event[Payload]) -> Event[Payload]:
    return build(InventoryReserved(order_id=event.correlation_id, items=(StockLine(sku="SKU-1", qty=1),)), AT)


def _wait_batches(handler: Recorder, number: int) -> None:
    wait_until(lambda: len(handler.batches) >= number, 20, f"{number} batches are processed")


def test_early_records_and_the_record_that_follows_are_one_batch(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "EARLY_SECONDS", LONG_SECONDS)
    received: list[Any] = []
    monkeypatch.setattr(subscription, "consumer", lambda *given: _NotesMessages(client.consumer(*given), received))
    handler = _Early(group)
    with running(handler, settings):
        events = authorized(3)
        for event in events:
            publish_events(settings.kafka_brokers, [event])
        wait_until(lambda: len(received) == 3, 20, "the early records are received")
        assert handler.batches == []
        publish_events(settings.kafka_brokers, [_following(events[0])])
        _wait_batches(handler, 1)
    assert [sorted(batch) for batch in handler.batches] == [
        sorted([*(event.correlation_id for event in events), events[0].correlation_id])
    ]


def test_if_nothing_follows_an_early_record_is_processed_after_a_moment(settings: Settings, group: str) -> None:
    handler = _Early(group)
    with running(handler, settings):
        (event,) = authorized(1)
        publish_events(settings.kafka_brokers, [event])
        _wait_batches(handler, 1)
    assert handler.batches == [[event.correlation_id]]


def test_a_record_that_is_not_early_does_not_wait(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "EARLY_SECONDS", LONG_SECONDS)
    handler = _Early(group)
    with running(handler, settings):
        (event,) = authorized(1)
        publish_events(settings.kafka_brokers, [_following(event)])
        _wait_batches(handler, 1)
    assert handler.batches == [[event.correlation_id]]
