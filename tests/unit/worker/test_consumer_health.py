"""The lag of a consumer, and when the consumer is stalled, with any offsets that a lost topic has left."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, TopicPartition

from orderstream.kafka.group_offsets import GroupOffsets, position
from orderstream.kafka.partitions import TopicAndPartition
from orderstream.worker.consumer_health import (
    PASSED_OVER_RECORDS,
    STALLED_SECONDS,
    ConsumerHealth,
    positions_ahead_of_group,
    positions_of,
)


def _health(clock: Callable[[], float]) -> ConsumerHealth:
    return ConsumerHealth(clock, ["t"])


def _lag(health: ConsumerHealth, consumer: Any, may_wait: Collection[str] = ()) -> dict[TopicAndPartition, int]:
    return health.lag(positions_of(consumer, consumer.assignment()), consumer.offsets(), may_wait)


class FakeConsumer:
    """A consumer of one partition."""

    def __init__(self, position: int, committed: int, first: int, end: int) -> None:
        self.offset, self.stored, self.first, self.end = position, committed, first, end

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition("t", 0)]

    def position(self, _partitions: Any) -> list[TopicPartition]:
        return [TopicPartition("t", 0, self.offset)]

    def offsets(self) -> dict[TopicAndPartition, GroupOffsets]:
        """Return the offsets that Kafka returns for the group."""
        return {("t", 0): GroupOffsets(self.first, position(self.stored, self.first, self.end), self.end)}


@pytest.mark.parametrize(
    ("consumer", "waiting"),
    [
        pytest.param(FakeConsumer(7, 7, 0, 10), 3, id="behind"),
        pytest.param(FakeConsumer(10, 10, 0, 10), 0, id="at the end"),
        pytest.param(FakeConsumer(OFFSET_INVALID, 4, 0, 10), 6, id="nothing received since the assignment"),
        pytest.param(FakeConsumer(OFFSET_INVALID, OFFSET_INVALID, 2, 10), 8, id="nothing ever received"),
        pytest.param(FakeConsumer(52, 52, 0, 10), 10, id="the topic was created again and is shorter"),
        pytest.param(FakeConsumer(52, 52, 0, 0), 0, id="the topic was created again and is empty"),
        pytest.param(FakeConsumer(3, 3, 10, 10), 0, id="all records have expired"),
    ],
)
def test_the_lag_is_counted_from_the_position_or_the_committed_offset(consumer: Any, waiting: int) -> None:
    assert _lag(_health(lambda: 0.0), consumer) == {("t", 0): waiting}


def test_a_consumer_is_stalled_if_records_wait_and_it_receives_none() -> None:
    now = 0.0
    health = _health(lambda: now)
    consumer: Any = FakeConsumer(5, 5, 0, 6)
    _lag(health, consumer)
    now = STALLED_SECONDS - 1
    consumer.end = 50
    _lag(health, consumer)
    assert health.stalled() == []
    now = STALLED_SECONDS + 1
    _lag(health, consumer)
    assert health.stalled() == [("t", 0)]
    consumer.offset = 6
    _lag(health, consumer)
    assert health.stalled() == []


def test_a_partition_without_waiting_records_is_not_stalled() -> None:
    now = 0.0
    health = _health(lambda: now)
    consumer: Any = FakeConsumer(5, 5, 0, 5)
    for _ in range(3):
        _lag(health, consumer)
        now += STALLED_SECONDS
    assert health.stalled() == []


def _without_partitions(consumer: FakeConsumer) -> Any:
    consumer.assignment = list  # type: ignore[method-assign]
    consumer.offset = OFFSET_INVALID
    return consumer


def test_a_consumer_without_partitions_is_stalled_if_no_consumer_receives_the_waiting_records() -> None:
    now = 0.0
    health = _health(lambda: now)
    consumer = _without_partitions(FakeConsumer(0, 5, 0, 6))
    assert _lag(health, consumer) == {}
    now = STALLED_SECONDS + 1
    _lag(health, consumer)
    assert health.stalled() == [("t", 0)]


def test_a_consumer_without_partitions_is_unassigned_only_after_topics_were_lost() -> None:
    now = 0.0
    health = _health(lambda: now)
    consumer = _without_partitions(FakeConsumer(0, 6, 0, 6))

    def is_unassigned_after(seconds: float) -> bool:
        nonlocal now
        _lag(health, consumer)
        now += seconds
        _lag(health, consumer)
        return health.unassigned()

    assert not is_unassigned_after(STALLED_SECONDS + 1)
    health.topics_lost()
    assert health.unassigned()
    health.reset()
    assert not is_unassigned_after(STALLED_SECONDS - 1)
    assert is_unassigned_after(STALLED_SECONDS + 1)
    consumer.assignment = lambda: [TopicPartition("t", 0)]
    assert not is_unassigned_after(STALLED_SECONDS + 1)


def test_a_consumer_without_partitions_is_not_stalled_while_others_receive_the_records() -> None:
    now = 0.0
    health = _health(lambda: now)
    consumer = _without_partitions(FakeConsumer(0, 5, 0, 100))
    for _ in range(10):
        _lag(health, consumer)
        assert health.stalled() == []
        consumer.stored += 1
        now += STALLED_SECONDS - 1


class FakeConsumerOfSeveral:
    """A consumer of several partitions: the position and the end of each."""

    def __init__(self, *partitions: tuple[int, int]) -> None:
        self.positions = [position for position, _ in partitions]
        self.ends = [end for _, end in partitions]

    def _all(self, offsets: list[int]) -> list[TopicPartition]:
        return [TopicPartition("t", number, offset) for number, offset in enumerate(offsets)]

    def assignment(self) -> list[TopicPartition]:
        return self._all([0] * len(self.ends))

    def position(self, _partitions: Any) -> list[TopicPartition]:
        return self._all(self.positions)

    def offsets(self) -> dict[TopicAndPartition, GroupOffsets]:
        """Return the offsets that Kafka returns for a group that has committed nothing."""
        return {("t", number): GroupOffsets(0, 0, end) for number, end in enumerate(self.ends)}


def test_a_consumer_that_receives_a_long_backlog_of_one_partition_is_not_stalled() -> None:
    now = 0.0
    health = _health(lambda: now)
    consumer: Any = FakeConsumerOfSeveral((0, 20_000), (0, 20_000), (0, 20_000))
    for number in range(3):
        for _ in range(10):
            consumer.positions[number] += 2_000
            _lag(health, consumer)
            assert health.stalled() == []
            now += STALLED_SECONDS / 3


def test_a_partition_is_not_stalled_until_the_backlog_of_another_is_received() -> None:
    now = 0.0
    health = _health(lambda: now)
    consumer: Any = FakeConsumerOfSeveral((0, 100), (0, 100))
    for taken in (0, 50, 99, 100):
        consumer.positions[0] = taken
        _lag(health, consumer)
        now += STALLED_SECONDS - 1
        assert health.stalled() == []
    _lag(health, consumer)
    now += STALLED_SECONDS
    _lag(health, consumer)
    assert health.stalled() == [("t", 1)]


def test_a_stalled_partition_is_found_while_records_of_others_are_received() -> None:
    now = 0.0
    health = _health(lambda: now)
    consumer: Any = FakeConsumerOfSeveral((0, 10), (0, 10))
    while not health.stalled():
        assert consumer.positions[0] <= 2 * PASSED_OVER_RECORDS
        consumer.positions[0] += 10_000
        consumer.ends[0] = consumer.positions[0] + 10
        _lag(health, consumer)
        now += 5
    assert health.stalled() == [("t", 1)]
    assert consumer.positions[0] > PASSED_OVER_RECORDS


def test_a_stalled_partition_is_found_soon_if_others_have_no_backlog() -> None:
    now = 0.0
    health = _health(lambda: now)
    consumer: Any = FakeConsumerOfSeveral((0, 0), (0, 10))
    for _ in range(5):
        consumer.positions[0] += 3
        consumer.ends[0] = consumer.positions[0]
        _lag(health, consumer)
        now += 5
    assert health.stalled() == [("t", 1)]


@pytest.mark.parametrize("is_assigned", [True, False])
def test_a_topic_that_may_wait_is_not_stalled_but_its_lag_is_measured(is_assigned: bool) -> None:
    now = 0.0
    health = _health(lambda: now)
    consumer: Any = FakeConsumer(5, 5, 0, 8)
    if not is_assigned:
        consumer = _without_partitions(consumer)
    for _ in range(3):
        assert _lag(health, consumer, {"t"}) == ({("t", 0): 3} if is_assigned else {})
        assert health.stalled() == []
        now += STALLED_SECONDS + 1
    _lag(health, consumer)
    assert health.stalled() == []
    now += STALLED_SECONDS + 1
    _lag(health, consumer)
    assert health.stalled() == [("t", 0)]


@pytest.mark.parametrize(
    ("consumer", "expected"),
    [
        pytest.param(FakeConsumer(7, 6, 0, 7), {("t", 0): 7}, id="ahead of the group"),
        pytest.param(FakeConsumer(7, 7, 0, 7), {}, id="as far as the group"),
        pytest.param(FakeConsumer(7, 6, 0, 8), {}, id="behind the end"),
        pytest.param(FakeConsumer(OFFSET_INVALID, 6, 0, 7), {}, id="nothing received since the assignment"),
        pytest.param(FakeConsumer(0, OFFSET_INVALID, 0, 0), {}, id="an empty partition"),
    ],
)
def test_a_position_is_ahead_of_the_group_if_no_record_waits_and_the_group_is_behind(
    consumer: Any, expected: dict[tuple[str, int], int]
) -> None:
    assert (
        positions_ahead_of_group(positions_of(consumer, consumer.assignment()), consumer.offsets(), set()) == expected
    )
    assert positions_ahead_of_group(positions_of(consumer, consumer.assignment()), consumer.offsets(), {("t", 0)}) == {}


def test_a_position_beyond_the_end_is_not_committed() -> None:
    """The consumer has received records since the offsets were read, or the topic was created again."""
    consumer: Any = FakeConsumer(8, 6, 0, 7)
    assert positions_ahead_of_group(positions_of(consumer, consumer.assignment()), consumer.offsets(), set()) == {}
