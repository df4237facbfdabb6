"""What waits for a consumer, and when one counts as deaf, whatever offsets a lost topic has left behind."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from confluent_kafka import OFFSET_INVALID, TopicPartition

from orderstream.worker.progress import DEAF_SECONDS, Progress


def _progress(clock: Callable[[], float]) -> Progress:
    return Progress(clock, ["t"])


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
    assert _progress(lambda: 0.0).waiting(ear) == {("t", 0): waiting}


def test_a_consumer_is_deaf_when_records_wait_and_it_does_not_move() -> None:
    now = 0.0
    progress = _progress(lambda: now)
    ear: Any = Ear(5, 5, 0, 6)
    progress.waiting(ear)
    now = DEAF_SECONDS - 1
    ear.end = 50
    progress.waiting(ear)
    assert progress.deaf() == []
    now = DEAF_SECONDS + 1
    progress.waiting(ear)
    assert progress.deaf() == [("t", 0)]
    ear.offset = 6
    progress.waiting(ear)
    assert progress.deaf() == []


def test_a_quiet_partition_is_not_deaf() -> None:
    now = 0.0
    progress = _progress(lambda: now)
    ear: Any = Ear(5, 5, 0, 5)
    for _ in range(3):
        progress.waiting(ear)
        now += DEAF_SECONDS
    assert progress.deaf() == []


class Listing:
    """What Kafka says of topic `t`: it has one partition."""

    topics: ClassVar[dict[str, Any]] = {"t": SimpleNamespace(partitions={0: None})}


def _without_partitions(ear: Ear) -> Any:
    ear.assignment = list  # type: ignore[method-assign]
    ear.offset = OFFSET_INVALID
    return ear


def test_a_consumer_without_partitions_is_deaf_when_nobody_takes_what_waits() -> None:
    now = 0.0
    progress = _progress(lambda: now)
    ear = _without_partitions(Ear(0, 5, 0, 6))
    assert progress.waiting(ear) == {}
    now = DEAF_SECONDS + 1
    progress.waiting(ear)
    assert progress.deaf() == [("t", 0)]


def test_a_consumer_without_partitions_is_left_out_only_after_topics_were_gone() -> None:
    now = 0.0
    progress = _progress(lambda: now)
    ear = _without_partitions(Ear(0, 6, 0, 6))

    def left_out_after(seconds: float) -> bool:
        nonlocal now
        progress.waiting(ear)
        now += seconds
        progress.waiting(ear)
        return progress.left_out()

    assert not left_out_after(DEAF_SECONDS + 1)
    progress.topics_lost()
    assert progress.left_out()
    progress.begin_anew()
    assert not left_out_after(DEAF_SECONDS - 1)
    assert left_out_after(DEAF_SECONDS + 1)
    ear.assignment = lambda: [TopicPartition("t", 0)]
    assert not left_out_after(DEAF_SECONDS + 1)


def test_a_consumer_without_partitions_is_well_while_others_take_what_waits() -> None:
    now = 0.0
    progress = _progress(lambda: now)
    ear = _without_partitions(Ear(0, 5, 0, 100))
    for _ in range(10):
        progress.waiting(ear)
        assert progress.deaf() == []
        ear.stored += 1
        now += DEAF_SECONDS - 1
