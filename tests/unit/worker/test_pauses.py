"""The partitions that a consumer pauses: of topics without room, also after an error and after an assignment."""

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from orderstream.telemetry import metrics
from orderstream.worker import pauses
from orderstream.worker.meters import WorkerMeters
from orderstream.worker.pauses import Pauses

SERVICE = "a-service"


class FakeConsumer:
    """A consumer of two partitions of each of two topics."""

    def __init__(self) -> None:
        self.paused: set[tuple[str, int]] = set()
        self.failures = 0
        self.requests = 0

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for topic in ("x-a", "x-b") for number in (0, 1)]

    def pause(self, partitions: list[TopicPartition]) -> None:
        if self.failures:
            self.failures -= 1
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.paused |= {(partition.topic, partition.partition) for partition in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.paused -= {(partition.topic, partition.partition) for partition in partitions}

    def offsets_for_times(self, _partitions: list[TopicPartition], **_limit: float) -> list[TopicPartition]:
        self.requests += 1
        return []


@pytest.fixture
def room() -> dict[str, int]:
    """The room of the handler, which a test changes."""
    return {"a": 1}


@pytest.fixture
def limited(room: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pauses]:
    """The pauses of topics with the prefix x-."""
    monkeypatch.setattr(pauses, "FULL_SECONDS", 0)
    monkeypatch.setattr(pauses, "TURN_SECONDS", 0)
    yield Pauses(lambda: room, "x-", WorkerMeters(SERVICE, ["a", "b"]))
    metrics.PAUSED_PARTITIONS.clear()


def _apply(limited: Pauses, consumer: FakeConsumer) -> None:
    limited.apply(consumer, limited.wait_for_room())  # type: ignore[arg-type]


def _gauge() -> float:
    value: float = metrics.PAUSED_PARTITIONS.labels(SERVICE, "a")._value.get()
    return value


def test_the_partitions_of_a_topic_without_room_are_paused_until_it_has_room(
    limited: Pauses, room: dict[str, int]
) -> None:
    consumer = FakeConsumer()
    room["a"] = 0
    _apply(limited, consumer)
    assert consumer.paused == {("x-a", 0), ("x-a", 1)}
    assert _gauge() == 2
    room["a"] = 5
    for _ in range(2):
        _apply(limited, consumer)
    assert consumer.paused == set(), "the turn of one partition has ended, too"
    assert (_gauge(), consumer.requests) == (0, 0)


def test_after_a_pause_the_partitions_take_turns(
    limited: Pauses, room: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, turns = FakeConsumer(), []
    monkeypatch.setattr(pauses, "TURN_SECONDS", 3_600)
    for _ in range(4):
        room["a"] = 0
        _apply(limited, consumer)
        assert consumer.paused == {("x-a", 0), ("x-a", 1)}
        room["a"] = 5
        _apply(limited, consumer)
        _apply(limited, consumer)
        turns.append({("x-a", 0), ("x-a", 1)} - consumer.paused)
        assert _gauge() == 1
    assert turns == [{("x-a", 1)}, {("x-a", 0)}] * 2
    limited._turns = dict.fromkeys(limited._turns, 0.0)
    _apply(limited, consumer)
    assert (consumer.paused, _gauge()) == (set(), 0)


def test_a_pause_that_fails_is_repeated(limited: Pauses, room: dict[str, int]) -> None:
    consumer = FakeConsumer()
    consumer.failures = 1
    room["a"] = 0
    _apply(limited, consumer)
    assert consumer.paused == set()
    _apply(limited, consumer)
    assert consumer.paused == {("x-a", 0), ("x-a", 1)}


def test_after_an_assignment_all_partitions_are_paused_or_resumed_again(limited: Pauses, room: dict[str, int]) -> None:
    consumer = FakeConsumer()
    consumer.paused = {("x-a", 0), ("x-b", 1)}
    _apply(limited, consumer)
    assert consumer.paused == {("x-a", 0), ("x-b", 1)}
    limited.note_assignment()
    _apply(limited, consumer)
    assert consumer.paused == set()
    room["a"] = 0
    _apply(limited, consumer)
    consumer.paused = {("x-b", 0)}
    limited.note_assignment()
    _apply(limited, consumer)
    assert consumer.paused == {("x-a", 0), ("x-a", 1)}


def test_the_end_of_a_pause_of_all_partitions_wakes_the_fetcher(limited: Pauses, room: dict[str, int]) -> None:
    consumer = FakeConsumer()
    room |= {"a": 0, "b": 0}
    _apply(limited, consumer)
    assert (len(consumer.paused), consumer.requests) == (4, 0)
    room["b"] = 1
    for _ in range(2):
        _apply(limited, consumer)
    assert (len(consumer.paused), consumer.requests) == (2, 1)


def test_a_topic_that_becomes_full_gets_room_before_it_is_paused(
    room: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        room["a"] = 3

    monkeypatch.setattr(time, "sleep", sleep)
    room["a"] = 0
    assert Pauses(lambda: dict(room), "", WorkerMeters(SERVICE, ["a"])).wait_for_room() == {"a": 3}
    assert waits == [pauses.CHECK_SECONDS]


def test_a_topic_that_stays_full_is_paused_after_a_limited_wait(
    room: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "FULL_SECONDS", 0.02)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    room["a"] = 0
    limited = Pauses(lambda: dict(room), "", WorkerMeters(SERVICE, ["a"]))
    assert limited.wait_for_room() == {"a": 0}
    assert set(waits) == {pauses.CHECK_SECONDS}


def test_a_topic_that_had_no_room_since_the_last_measurement_may_wait(limited: Pauses, room: dict[str, int]) -> None:
    consumer = FakeConsumer()
    for free in (0, 1):
        room["a"] = free
        _apply(limited, consumer)
    assert limited.may_wait(assigned=True) == {"x-a"}
    limited.note_measurement()
    assert limited.may_wait(assigned=True) == set()
