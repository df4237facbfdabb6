"""What a subscription commits if its partitions change, and how much it gathers, with a scripted client."""

from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from msgspec import structs

from orderstream.kafka.envelope import Record
from orderstream.process.gathering import OF_RECORDS
from orderstream.process.readiness import Readiness
from orderstream.settings import Settings
from orderstream.worker.handler import nothing
from orderstream.worker.meters import WorkerMeters
from orderstream.worker.subscription import GATHER_BYTES, Subscription
from tests.integration.worker.recorder import IN


class _Client:
    """Notes commits, and the waits for more messages. There are none."""

    def __init__(self) -> None:
        self.commits: list[tuple[bool, dict[int, int]]] = []
        """Whether the call did not wait, and the offset of each partition."""
        self.waits: list[float] = []

    def commit(self, offsets: list[TopicPartition], asynchronous: bool = True) -> None:
        self.commits.append((asynchronous, {partition.partition: partition.offset for partition in offsets}))

    def consume(self, _limit: int, seconds: float) -> list[Any]:
        self.waits.append(seconds)
        return []

    def close(self) -> None:
        """Do nothing."""


class _Message:
    """A message of IN."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def __len__(self) -> int:
        return self._size_bytes

    def topic(self) -> str:
        return IN


@pytest.fixture
def client() -> _Client:
    return _Client()


@pytest.fixture
def subscription(settings: Settings, group: str, client: _Client) -> Iterator[Subscription]:
    """A subscription that has partition 0 of IN, which is an early topic."""
    made = Subscription(
        settings,
        group,
        [IN],
        WorkerMeters(group, [IN]),
        Readiness(),
        room=dict,
        gathering=structs.replace(OF_RECORDS, early_topics=(IN,)),
        on_assigned=nothing,
    )
    made._consumer.close()
    made._consumer = client  # type: ignore[assignment]
    made._partitions = {(IN, 0): TopicPartition(IN, 0)}
    yield made
    made.close()


def _record(partition: int, offset: int) -> Record:
    return Record(IN, partition, offset, b"k", b"v", [])


def test_offsets_of_partitions_that_were_given_away_are_not_committed(
    subscription: Subscription, client: _Client
) -> None:
    subscription.commit([_record(0, 4), _record(1, 7)])
    subscription._commit_processed(waits=False)
    assert client.commits == [(True, {0: 5})]


def test_a_commit_without_an_answer_is_repeated_before_the_partitions_are_given_away(
    subscription: Subscription, client: _Client
) -> None:
    subscription.commit([_record(0, 4)])
    subscription._commit_processed(waits=False)
    subscription._revoked(client, [])  # type: ignore[arg-type]
    assert client.commits == [(True, {0: 5}), (False, {0: 5})]


def test_a_commit_that_was_answered_is_not_repeated(subscription: Subscription, client: _Client) -> None:
    subscription.commit([_record(0, 4)])
    subscription._commit_processed(waits=False)
    subscription._note_commit(None, [TopicPartition(IN, 0, 5)])
    subscription._revoked(client, [])  # type: ignore[arg-type]
    assert client.commits == [(True, {0: 5})]


@pytest.mark.parametrize(("size_bytes", "waits"), [(100, True), (GATHER_BYTES, False)])
def test_a_batch_of_large_early_records_does_not_wait(
    subscription: Subscription, client: _Client, monkeypatch: pytest.MonkeyPatch, size_bytes: int, waits: bool
) -> None:
    monkeypatch.setattr("orderstream.worker.subscription.EARLY_SECONDS", 60.0)
    subscription._gather(_Message(size_bytes), 100, until=0)  # type: ignore[arg-type]
    assert any(client.waits) == waits
