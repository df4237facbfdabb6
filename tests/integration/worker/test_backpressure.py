"""A topic without room waits in Kafka: nothing is lost, skipped or reordered, and other topics go on (P5, P7)."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import psycopg
import pytest

from orderstream.domain.events import Event, InventoryReserved, Payload, StockLine, build, topic_of
from orderstream.kafka.envelope import Received, Record
from orderstream.postgres.connect import Connection
from orderstream.process.gathering import OF_RECORDS
from orderstream.process.readiness import Readiness
from orderstream.settings import Settings
from orderstream.telemetry import metrics
from orderstream.worker import consumer_health, pauses, runner, subscription
from orderstream.worker.handler import BatchResult, nothing
from orderstream.worker.meters import WorkerMeters
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import IN, Recorder
from tests.integration.worker.running import running
from tests.support.samples import AT
from tests.support.topics import end_offsets, offsets_of, publish_events
from tests.support.waiting import wait_until

OTHER = topic_of("inventory.reserved")
PARTITIONS = 4


class Limited(Recorder):
    """A handler of two topics, with room for `free` records of IN."""

    topics = (IN, OTHER)
    emits = ()

    def __init__(self, group: str, free: int) -> None:
        super().__init__(group, self._fail)
        self.free = free
        self.failures = 0
        self.records: list[Record] = []
        """The records whose decision is committed, in the order of the decisions."""

    def room(self) -> Mapping[str, int]:
        """Return the room for IN."""
        return {IN: self.free}

    def decide(self, tx: Connection, batch: Sequence[Received], prepared: None, /) -> BatchResult:
        """Record the batch and emit nothing."""
        super().decide(tx, batch, prepared)
        return BatchResult(after_commit=lambda: self.records.extend(received.record for received in batch))

    def _fail(self, _tx: Connection, _batch: Sequence[Received]) -> None:
        if self.failures:
            self.failures -= 1
            raise psycopg.OperationalError("Postgres is gone")

    def count(self, topic: str) -> int:
        """Return how many records of a topic are processed."""
        return sum(record.topic == topic for record in self.records)


def _others(number: int) -> list[Event[Payload]]:
    lines = (StockLine(sku="SKU-1", qty=1),)
    orders = [event.correlation_id for event in authorized(number)]
    return [build(InventoryReserved(order_id=order_id, items=lines), AT) for order_id in orders]


def _lag(group: str) -> int:
    found = (metrics.LAG.labels(group, IN, str(number))._value.get() for number in range(PARTITIONS))
    return int(sum(found))


def _paused(group: str) -> int:
    return int(metrics.PAUSED_PARTITIONS.labels(group, IN)._value.get())


def _wait_lag(group: str, records: int) -> None:
    wait_until(lambda: _lag(group) == records, 20, f"{records} records wait as lag")


def _wait_count(handler: Limited, topic: str, number: int) -> None:
    wait_until(lambda: handler.count(topic) >= number, 60, f"{number} records of {topic} are processed")


def _assert_each_once_and_in_order(*handlers: Limited) -> None:
    """The offsets of each partition must be consecutive: nothing is skipped, repeated or reordered."""
    partitions: dict[tuple[str, int], list[int]] = {}
    for handler in handlers:
        for record in handler.records:
            partitions.setdefault((record.topic, record.partition), []).append(record.offset)
    for offsets in partitions.values():
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the lag often, and replace a stalled consumer soon."""
    monkeypatch.setattr(subscription, "MEASURE_SECONDS", 0.1)
    monkeypatch.setattr(consumer_health, "STALLED_SECONDS", 0.5)


@pytest.mark.usefixtures("measured")
def test_a_topic_without_room_waits_as_lag_and_the_other_topic_is_processed(settings: Settings, group: str) -> None:
    handler = Limited(group, free=0)
    with running(handler, settings) as loop:
        consumer = loop.runner._subscription._consumer
        publish_events(settings.kafka_brokers, authorized(30))
        _wait_lag(group, 30)
        # No other topic has records meanwhile. On a busy machine, one of them may wait until it counts as stalled.
        until = time.monotonic() + 3 * consumer_health.STALLED_SECONDS
        wait_until(lambda: loop.runner._subscription._measured > until, 20, "the lag is measured for a while")
        assert loop.runner._subscription._consumer is consumer
        for number in range(1, 20):
            publish_events(settings.kafka_brokers, _others(1))
            _wait_count(handler, OTHER, number)
        _wait_lag(group, 30)
        assert (handler.count(IN), _paused(group)) == (0, PARTITIONS)
        handler.free = 7
        _wait_count(handler, IN, 30)
        assert max(map(len, handler.batches)) == 7
        assert _paused(group) == 0
        handler.free = 0
        wait_until(lambda: _paused(group) == PARTITIONS, 20, "the topic is paused again")
        publish_events(settings.kafka_brokers, authorized(20))
        _wait_lag(group, 20)
        assert handler.count(IN) == 30
        handler.free = 500
        _wait_count(handler, IN, 50)
        _wait_lag(group, 0)
    _assert_each_once_and_in_order(handler)


@pytest.mark.usefixtures("measured")
def test_a_batch_is_rewound_and_committed_while_another_topic_is_paused(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0)
    handler = Limited(group, free=0)
    with running(handler, settings):
        publish_events(settings.kafka_brokers, authorized(10))
        _wait_lag(group, 10)
        handler.failures = 3
        publish_events(settings.kafka_brokers, _others(10))
        _wait_count(handler, OTHER, 10)
        assert handler.failures == 0
        ends = end_offsets(settings.kafka_brokers, [OTHER])
        wait_until(lambda: offsets_of(settings.kafka_brokers, group, [OTHER]) == ends, 20, "its offsets are committed")
        assert handler.count(IN) == 0
        handler.failures = 3
        handler.free = 4
        _wait_count(handler, IN, 10)
    _assert_each_once_and_in_order(handler)


class Often(Limited):
    """A handler that has no room for a moment after each batch of five records."""

    def __init__(self, group: str) -> None:
        super().__init__(group, 5)
        self._full_for = 0

    def room(self) -> Mapping[str, int]:
        """Return no room twice after each batch."""
        self._full_for -= 1
        return {IN: 0 if self._full_for > 0 else self.free}

    def decide(self, tx: Connection, batch: Sequence[Received], prepared: None, /) -> BatchResult:
        """Record the batch."""
        self._full_for = 3
        return super().decide(tx, batch, prepared)


def test_no_partition_starves_if_a_topic_is_paused_again_and_again(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "FULL_SECONDS", 0)
    # A turn must be longer than a fetch, also on a busy machine.
    monkeypatch.setattr(pauses, "TURN_SECONDS", 5.0)
    handler = Often(group)
    publish_events(settings.kafka_brokers, authorized(400))
    with running(handler, settings):
        _wait_count(handler, IN, 200)
        partitions = Counter(record.partition for record in handler.records if record.topic == IN)
    assert len(partitions) == PARTITIONS
    assert min(partitions.values()) >= 20, "each partition has about 50 of the first 200 records"
    _assert_each_once_and_in_order(handler)


@pytest.mark.usefixtures("measured")
def test_a_topic_stays_paused_when_the_group_assigns_its_partitions_again(settings: Settings, group: str) -> None:
    first, second = Limited(group, free=500), Limited(group, free=0)
    with running(first, settings):
        publish_events(settings.kafka_brokers, authorized(20))
        _wait_count(first, IN, 20)
        first.free = 0
        wait_until(lambda: _paused(group) == PARTITIONS, 20, "the topic is paused")
        publish_events(settings.kafka_brokers, authorized(40))
        with running(second, settings):
            wait_until(lambda: _paused(group) == PARTITIONS // 2, 20, "each consumer pauses its partitions")
            assert (first.count(IN), second.count(IN)) == (20, 0)
            second.free = 500
            wait_until(lambda: second.count(IN) > 0, 20, "the second consumer has room")
            wait_until(lambda: _lag_of_group(settings, group) == 40 - second.count(IN), 20, "it is committed")
        wait_until(lambda: _paused(group) == PARTITIONS, 20, "the first consumer pauses all partitions again")
        _wait_lag(group, 40 - second.count(IN))
        assert first.count(IN) == 20
        first.free = 500
        _wait_count(first, IN, 60 - second.count(IN))
        _wait_lag(group, 0)
    assert first.count(IN) + second.count(IN) == 60
    orders = [record.key for handler in (first, second) for record in handler.records]
    assert len(set(orders)) == len(orders) == 60


def _lag_of_group(settings: Settings, group: str) -> int:
    ends = end_offsets(settings.kafka_brokers, [IN])
    offsets = offsets_of(settings.kafka_brokers, group, [IN])
    return sum(end - offsets[partition] for partition, end in ends.items())


def test_a_record_of_a_partition_that_is_assigned_during_a_poll_waits_for_room(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One poll lasts longer than the first assignment, so that it returns a record before the topic is paused."""
    monkeypatch.setattr(subscription, "POLL_SECONDS_WITHOUT_ROOM", 20.0)
    rewound: list[Record] = []

    class Watched(subscription.Subscription):
        def rewind(self, records: Sequence[Record]) -> None:  # type: ignore[override]
            rewound.extend(records)
            monkeypatch.setattr(subscription, "POLL_SECONDS_WITHOUT_ROOM", 0.1)
            super().rewind(records)

    monkeypatch.setattr(runner, "Subscription", Watched)
    publish_events(settings.kafka_brokers, authorized(20))
    handler = Limited(group, free=0)
    with running(handler, settings):
        wait_until(lambda: _paused(group) == PARTITIONS, 20, "the topic is paused")
        wait_until(lambda: rewound, 20, "a record was polled")
        publish_events(settings.kafka_brokers, _others(1))
        _wait_count(handler, OTHER, 1)
        assert handler.count(IN) == 0
        handler.free = 3
        _wait_count(handler, IN, 20)
    assert max(map(len, handler.batches)) <= 3
    _assert_each_once_and_in_order(handler)


def test_an_idle_replica_does_not_count_a_limited_topic_as_stalled(settings: Settings, group: str) -> None:
    idle = subscription.Subscription(
        settings,
        group,
        (IN, OTHER),
        WorkerMeters(group, (IN, OTHER)),
        Readiness(),
        room=lambda: {IN: 500},
        gathering=OF_RECORDS,
        on_assigned=nothing,
    )
    try:
        assert idle._pauses.may_wait(assigned=False) == {IN}
    finally:
        idle.close()
