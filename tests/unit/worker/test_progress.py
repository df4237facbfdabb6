"""What waits for a consumer, and when one counts as deaf, whatever offsets a lost topic has left behind."""

from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, TopicPartition

from orderstream.worker.progress import DEAF_SECONDS, Progress


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
    assert Progress(lambda: 0.0).waiting(ear) == {("t", 0): waiting}


def test_a_consumer_is_deaf_when_records_wait_and_it_does_not_move() -> None:
    now = 0.0
    progress = Progress(lambda: now)
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
    progress = Progress(lambda: now)
    ear: Any = Ear(5, 5, 0, 5)
    for _ in range(3):
        progress.waiting(ear)
        now += DEAF_SECONDS
    assert progress.deaf() == []


def test_a_consumer_without_partitions_is_left_out_and_said_to_be_so_ever_more_rarely() -> None:
    now = 0.0
    progress = Progress(lambda: now)
    ear: Any = Ear(5, 5, 0, 6)
    ear.assignment = list
    said = []
    for now in range(0, 120, 5):
        progress.waiting(ear)
        if progress.left_out():
            said.append(now)
            progress.begin_anew()
    assert said == [20, 60]
    progress.waiting(Ear(5, 5, 0, 6))  # type: ignore[arg-type]
    assert not progress.left_out()
