"""What waits for a consumer, and when one counts as deaf, whatever offsets a lost topic has left behind."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from confluent_kafka import OFFSET_INVALID, TopicPartition

from orderstream.worker.consumer_health import PASSED_OVER_RECORDS, STALLED_SECONDS, ConsumerHealth


def _health(clock: Callable[[], float]) -> ConsumerHealth:
    return ConsumerHealth(clock, ["t"])


class Ear:
    """A consumer of one partition."""

    def __init__(self, position: int, committed: int, first: int, end: int) -> None:
        self.offset, self.stored, self.first, self.end = position, committed, first, end

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition("t", 0)]

    def position(self, _places: Any) -> list[TopicPartition]:
        return [TopicPartition("t", 0, self.offset)]

    def committed(self, _places: Any, **_limit: float) -> list[TopicPartition]:
        return [TopicPartition("t", 0, self.stored)]

    def list_topics(self, **_limit: float) -> "Listing":
        return Listing()

    def offsets_for_times(self, places: list[TopicPartition], **_limit: float) -> list[TopicPartition]:
        return [TopicPartition("t", 0, self.end if places[0].offset == -1 else self.first)]


@pytest.mark.parametrize(
    ("ear", "waiting"),
    [
        pytest.param(Ear(7, 7, 0, 10), 3, id="behind"),
        pytest.param(Ear(10, 10, 0, 10), 0, id="at the end"),
        pytest.param(Ear(OFFSET_INVALID, 4, 0, 10), 6, id="nothing taken since the assignment"),
        pytest.param(Ear(OFFSET_INVALID, OFFSET_INVALID, 2, 10), 8, id="nothing ever taken"),
        pytest.param(Ear(52, 52, 0, 10), 10, id="the topic was made again and is shorter"),
        pytest.param(Ear(52, 52, 0, 0), 0, id="the topic was made again and is empty"),
        pytest.param(Ear(3, 3, 10, 10), 0, id="all has expired"),
    ],
)
def test_how_much_waits(ear: Any, waiting: int) -> None:
    assert _health(lambda: 0.0).lag(ear) == {("t", 0): waiting}


def test_a_consumer_is_deaf_when_records_wait_and_it_does_not_move() -> None:
    now = 0.0
    health = _health(lambda: now)
    ear: Any = Ear(5, 5, 0, 6)
    health.lag(ear)
    now = STALLED_SECONDS - 1
    ear.end = 50
    health.lag(ear)
    assert health.stalled() == []
    now = STALLED_SECONDS + 1
    health.lag(ear)
    assert health.stalled() == [("t", 0)]
    ear.offset = 6
    health.lag(ear)
    assert health.stalled() == []


def test_a_quiet_partition_is_not_deaf() -> None:
    now = 0.0
    health = _health(lambda: now)
    ear: Any = Ear(5, 5, 0, 5)
    for _ in range(3):
        health.lag(ear)
        now += STALLED_SECONDS
    assert health.stalled() == []


class Listing:
    """What Kafka says of topic `t`: it has one partition."""

    topics: ClassVar[dict[str, Any]] = {"t": SimpleNamespace(partitions={0: None})}


def _without_partitions(ear: Ear) -> Any:
    ear.assignment = list  # type: ignore[method-assign]
    ear.offset = OFFSET_INVALID
    return ear


def test_a_consumer_without_partitions_is_deaf_when_nobody_takes_what_waits() -> None:
    now = 0.0
    health = _health(lambda: now)
    ear = _without_partitions(Ear(0, 5, 0, 6))
    assert health.lag(ear) == {}
    now = STALLED_SECONDS + 1
    health.lag(ear)
    assert health.stalled() == [("t", 0)]


def test_a_consumer_without_partitions_is_left_out_only_after_topics_were_gone() -> None:
    now = 0.0
    health = _health(lambda: now)
    ear = _without_partitions(Ear(0, 6, 0, 6))

    def unassigned_after(seconds: float) -> bool:
        nonlocal now
        health.lag(ear)
        now += seconds
        health.lag(ear)
        return health.unassigned()

    assert not unassigned_after(STALLED_SECONDS + 1)
    health.topics_lost()
    assert health.unassigned()
    health.reset()
    assert not unassigned_after(STALLED_SECONDS - 1)
    assert unassigned_after(STALLED_SECONDS + 1)
    ear.assignment = lambda: [TopicPartition("t", 0)]
    assert not unassigned_after(STALLED_SECONDS + 1)


def test_a_consumer_without_partitions_is_well_while_others_take_what_waits() -> None:
    now = 0.0
    health = _health(lambda: now)
    ear = _without_partitions(Ear(0, 5, 0, 100))
    for _ in range(10):
        health.lag(ear)
        assert health.stalled() == []
        ear.stored += 1
        now += STALLED_SECONDS - 1


class Ears:
    """A consumer of several partitions: the position and the end of each."""

    def __init__(self, *places: tuple[int, int]) -> None:
        self.positions = [position for position, _ in places]
        self.ends = [end for _, end in places]

    def _all(self, offsets: list[int]) -> list[TopicPartition]:
        return [TopicPartition("t", number, offset) for number, offset in enumerate(offsets)]

    def assignment(self) -> list[TopicPartition]:
        return self._all([0] * len(self.ends))

    def position(self, _places: Any) -> list[TopicPartition]:
        return self._all(self.positions)

    def offsets_for_times(self, places: list[TopicPartition], **_limit: float) -> list[TopicPartition]:
        return self._all(self.ends if places[0].offset == -1 else [0] * len(self.ends))


def test_a_consumer_that_takes_a_long_turn_of_one_partition_is_not_stalled() -> None:
    now = 0.0
    health = _health(lambda: now)
    ears: Any = Ears((0, 20_000), (0, 20_000), (0, 20_000))
    for number in range(3):
        for _ in range(10):
            ears.positions[number] += 2_000
            health.lag(ears)
            assert health.stalled() == []
            now += STALLED_SECONDS / 3


def test_the_turn_of_a_partition_begins_when_that_of_another_has_ended() -> None:
    now = 0.0
    health = _health(lambda: now)
    ears: Any = Ears((0, 100), (0, 100))
    for taken in (0, 50, 99, 100):
        ears.positions[0] = taken
        health.lag(ears)
        now += STALLED_SECONDS - 1
        assert health.stalled() == []
    health.lag(ears)
    now += STALLED_SECONDS
    health.lag(ears)
    assert health.stalled() == [("t", 1)]


def test_a_partition_that_is_left_out_is_noticed_while_others_are_taken() -> None:
    now = 0.0
    health = _health(lambda: now)
    ears: Any = Ears((0, 10), (0, 10))
    while not health.stalled():
        assert ears.positions[0] <= 2 * PASSED_OVER_RECORDS
        ears.positions[0] += 10_000
        ears.ends[0] = ears.positions[0] + 10
        health.lag(ears)
        now += 5
    assert health.stalled() == [("t", 1)]
    assert ears.positions[0] > PASSED_OVER_RECORDS


def test_with_little_to_take_a_partition_that_is_left_out_is_noticed_soon() -> None:
    now = 0.0
    health = _health(lambda: now)
    ears: Any = Ears((0, 0), (0, 10))
    for _ in range(5):
        ears.positions[0] += 3
        ears.ends[0] = ears.positions[0]
        health.lag(ears)
        now += 5
    assert health.stalled() == [("t", 1)]
