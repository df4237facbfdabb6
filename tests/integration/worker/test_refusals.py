"""If Kafka refuses a record of a worker, Postgres keeps the record, and no good record is blocked (P5, P9)."""

import threading
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
from confluent_kafka import KafkaError

from orderstream.dead_letters.refused_records import newest
from orderstream.domain.events import InventoryReserved, StockLine, build
from orderstream.kafka import publisher
from orderstream.kafka.client import MAX_MESSAGE_BYTES
from orderstream.kafka.envelope import Received
from orderstream.kafka.errors import PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import dead_letter_topic
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from orderstream.worker import batch, runner
from orderstream.worker.failure_limit import MIN_FAILURES
from orderstream.worker.handler import BatchResult, Outgoing
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import IN, OUT, Recorder
from tests.integration.worker.running import running
from tests.support.samples import AT
from tests.support.topics import Letter, Tap, end_offsets, offsets_of, publish, publish_events, topic_settings
from tests.support.waiting import wait_until

POISON: list[tuple[str, bytes | None, bytes | None]] = [(IN, b"key", b"no json"), (IN, None, b"{}")]


def _wait_caught_up(settings: Settings, group: str) -> None:
    def caught_up() -> bool:
        return offsets_of(settings.kafka_brokers, group, [IN]) == end_offsets(settings.kafka_brokers, [IN])

    wait_until(caught_up, 20, "every offset is committed")


def _keys(letters: Sequence[Letter]) -> set[str]:
    return {(letter.key or b"").decode() for letter in letters}


class _Verbose(Recorder):
    """Publishes events of a given size in bytes for some orders."""

    def __init__(self, group: str, orders: set[str], size: int) -> None:
        super().__init__(group)
        self._orders = orders
        self._size = size

    def decide(self, tx: Connection, batch: Sequence[Received], prepared: None, /) -> BatchResult:
        emitted = super().decide(tx, batch, prepared).emit
        return BatchResult([self._answer(outgoing) for outgoing in emitted])

    def _answer(self, outgoing: Outgoing) -> Outgoing:
        order_id = outgoing.cause.order_id
        if order_id not in self._orders:
            return outgoing
        lines = (StockLine(sku="S" * self._size, qty=1),)
        return Outgoing(build(InventoryReserved(order_id=order_id, items=lines), AT), outgoing.cause)


@pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES, 20_000], ids=["client", "broker"])
def test_an_event_that_kafka_refuses_is_kept_and_blocks_no_other_event(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """There are more refusals than failures that stop a process, because a refusal is not a defect of the handler."""
    # After this time the whole batch would be published again, the good events too.
    monkeypatch.setattr(publisher, "RESEND_SECONDS", 30)
    events = authorized(MIN_FAILURES + 20)
    bad = {event.correlation_id for event in events[: MIN_FAILURES + 5]}
    publish_events(settings.kafka_brokers, events)
    with (
        topic_settings(settings.kafka_brokers, OUT, {"max.message.bytes": "10000"}),
        Tap(settings.kafka_brokers, [OUT, dead_letter_topic(group)]) as tap,
    ):
        with running(_Verbose(group, bad, size), settings):
            _wait_caught_up(settings, group)
        letters = tap.so_far()
    assert len(letters) == 15
    assert _keys(letters) == {event.correlation_id for event in events} - bad
    assert {(record.publication.key or b"").decode() for record in newest(settings.postgres_url, 100)} == bad  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "kept"),
    [({"cleanup.policy": "compact"}, [None]), ({"max.message.bytes": "80"}, [None, b"key"])],
    ids=["compacted", "small"],
)
def test_a_dead_letter_that_its_topic_refuses_is_kept_completely(
    settings: Settings, group: str, values: dict[str, str], kept: list[bytes | None]
) -> None:
    publish(settings.kafka_brokers, POISON)
    publish_events(settings.kafka_brokers, events := authorized(4))
    with (
        topic_settings(settings.kafka_brokers, dead_letter_topic(group), values),
        Tap(settings.kafka_brokers, [OUT, dead_letter_topic(group)]) as tap,
        running(Recorder(group), settings),
    ):
        _wait_caught_up(settings, group)
        letters = tap.so_far()
    assert _keys([letter for letter in letters if letter.topic == OUT]) == {event.correlation_id for event in events}
    assert len([letter for letter in letters if letter.topic != OUT]) == len(POISON) - len(kept)
    records = newest(settings.postgres_url, 10)
    assert {record.publication.topic for record in records} == {dead_letter_topic(group)}
    assert sorted((record.publication.key for record in records), key=str) == sorted(kept, key=str)
    for record in records:
        assert (record.publication.key, record.publication.value) in [(key, value) for _, key, value in POISON]
        assert dict(record.publication.headers)["dlq-reason"] in ("NOT_JSON", "NO_KEY")


class _Sending(Publisher):
    """Fails the first publishes to one topic without sending anything."""

    topic = ""
    failures = 0

    def publish(self, records: Sequence[Publication]) -> None:
        if _Sending.failures and _Sending.topic in {record.topic for record in records}:
            _Sending.failures -= 1
            raise PublishError(KafkaError(KafkaError._MSG_TIMED_OUT), len(records))
        super().publish(records)


def test_an_event_is_published_after_failed_attempts(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "Publisher", _Sending)
    monkeypatch.setattr(_Sending, "topic", OUT)
    monkeypatch.setattr(_Sending, "failures", 2)
    publish_events(settings.kafka_brokers, events := authorized(4))
    with Tap(settings.kafka_brokers, [OUT]) as tap, running(Recorder(group), settings):
        _wait_caught_up(settings, group)
        assert _keys(tap.so_far()) == {event.correlation_id for event in events}


def test_a_dead_letter_is_published_after_failed_attempts(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "Publisher", _Sending)
    monkeypatch.setattr(_Sending, "topic", dead_letter_topic(group))
    monkeypatch.setattr(_Sending, "failures", batch.LETTER_FAILURES_MAX - 1)
    publish(settings.kafka_brokers, POISON)
    with Tap(settings.kafka_brokers, [dead_letter_topic(group)]) as tap, running(Recorder(group), settings):
        _wait_caught_up(settings, group)
        assert len(tap.so_far()) == len(POISON)
    assert newest(settings.postgres_url, 10) == []


def test_a_dead_letter_topic_that_never_acknowledges_blocks_no_good_record(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "Publisher", _Sending)
    monkeypatch.setattr(_Sending, "topic", dead_letter_topic(group))
    monkeypatch.setattr(_Sending, "failures", 1_000)
    publish(settings.kafka_brokers, POISON)
    publish_events(settings.kafka_brokers, events := authorized(4))
    with Tap(settings.kafka_brokers, [OUT]) as tap, running(Recorder(group), settings):
        _wait_caught_up(settings, group)
        assert _keys(tap.so_far()) == {event.correlation_id for event in events}
    assert len(newest(settings.postgres_url, 10)) == len(POISON)


def test_offsets_move_only_after_kafka_has_acknowledged_the_dead_letter(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad and good records are published before the runner starts, so that they share a batch."""
    reached, opened = threading.Event(), threading.Event()

    class Held(Publisher):
        def publish(self, records: Sequence[Publication]) -> None:
            if records[0].topic == dead_letter_topic(group):
                reached.set()
                assert opened.wait(20)
            super().publish(records)

    monkeypatch.setattr(runner, "Publisher", Held)
    places = publish(settings.kafka_brokers, POISON)
    publish_events(settings.kafka_brokers, events := authorized(8))
    with Tap(settings.kafka_brokers, [OUT, dead_letter_topic(group)]) as tap, ExitStack() as stack:
        stack.callback(opened.set)
        handler = Recorder(group)
        stack.enter_context(running(handler, settings, ready=False))
        assert reached.wait(20), "the dead letters are published"
        committed = offsets_of(settings.kafka_brokers, group, [IN])
        assert all(committed[name, partition] <= offset for name, partition, offset in places)
        opened.set()
        _wait_caught_up(settings, group)
        letters = tap.so_far()
    assert _keys([letter for letter in letters if letter.topic == OUT]) == {event.correlation_id for event in events}
    assert len(letters) == len(POISON) + len(events)
