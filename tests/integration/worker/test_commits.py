"""Offsets are committed together and before partitions are given away, and no record waits for Kafka's answers (P5)."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import Consumer

from orderstream.kafka import client
from orderstream.kafka.group_offsets import GroupOffsets, group_offsets
from orderstream.settings import Settings
from orderstream.worker import subscription
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import IN, OUT, Recorder
from tests.integration.worker.running import running
from tests.integration.worker.test_offsets import Commits
from tests.support.topics import Tap, end_offsets, offsets_of, publish_events
from tests.support.waiting import wait_until

NEVER_SECONDS = 3_600.0


def _caught_up(settings: Settings, group: str) -> bool:
    return offsets_of(settings.kafka_brokers, group, [IN]) == end_offsets(settings.kafka_brokers, [IN])


def test_the_offsets_of_several_batches_are_committed_together_and_at_the_end(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits([])
    monkeypatch.setattr(subscription, "consumer", commits.of)
    monkeypatch.setattr(subscription, "COMMIT_SECONDS", NEVER_SECONDS)
    handler = Recorder(group)
    with running(handler, settings) as loop:
        for number in range(1, 6):
            publish_events(settings.kafka_brokers, authorized(1))
            loop.wait_finished(number)
        assert len(handler.batches) == 5
        assert commits.count == 1
    assert commits.count == 2
    assert _caught_up(settings, group)


def test_without_new_records_the_offsets_are_committed_after_a_moment(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "POLL_SECONDS", NEVER_SECONDS)
    with running(Recorder(group), settings):
        for _ in range(2):
            publish_events(settings.kafka_brokers, authorized(1))
            wait_until(lambda: _caught_up(settings, group), 20, "the offsets are committed")
        monkeypatch.setattr(subscription, "POLL_SECONDS", 0.1)
        publish_events(settings.kafka_brokers, authorized(1))
        wait_until(lambda: _caught_up(settings, group), 20, "the long poll has ended")


def test_the_offsets_are_committed_before_the_partitions_are_given_to_another_worker(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "COMMIT_SECONDS", NEVER_SECONDS)
    first, second = Recorder(group), Recorder(group)
    with Tap(settings.kafka_brokers, [OUT]) as tap, running(first, settings):
        for number in range(1, 4):
            publish_events(settings.kafka_brokers, authorized(4))
            tap.count(4 * number)
        with running(second, settings):
            publish_events(settings.kafka_brokers, authorized(20))
            tap.count(32)
    received = [order for handler in (first, second) for batch in handler.batches for order in batch]
    assert len(received) == len(set(received)) == 32


class SlowAnswers:
    """Kafka's answers about offsets, which wait until the test releases them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.released = threading.Event(), threading.Event()
        self.clients: list[Consumer] = []
        monkeypatch.setattr(subscription, "group_offsets", self._answer)

    def _answer(self, client: Consumer, topics: Sequence[str], _deadline: float) -> dict[Any, GroupOffsets]:
        self.clients.append(client)
        self.asked.set()
        assert self.released.wait(20)
        return group_offsets(client, topics, time.monotonic() + 5)


def test_no_record_waits_while_the_offsets_are_read(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = SlowAnswers(monkeypatch)
    with Tap(settings.kafka_brokers, [OUT]) as tap, running(Recorder(group), settings) as loop:
        assert answers.asked.wait(20)
        publish_events(settings.kafka_brokers, authorized(3))
        tap.count(3)
        assert loop.runner._subscription._measured == 0
        answers.released.set()
        wait_until(lambda: loop.runner._subscription._measured > 0, 20, "the lag is measured")


def test_the_end_of_a_worker_waits_for_the_offsets_that_it_reads(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request of a closed client could end the process with a signal."""
    answers = SlowAnswers(monkeypatch)
    closed: list[Any] = []
    monkeypatch.setattr(subscription, "consumer", lambda *given: _NotesClose(client.consumer(*given), closed))
    with running(Recorder(group), settings) as loop:
        assert answers.asked.wait(20)
        consumer, reader = loop.runner._subscription._consumer, loop.runner._subscription._offsets_client
        assert answers.clients == [reader]
        loop.runner._stop.set()
        wait_until(lambda: consumer in closed, 20, "the worker has left its group")
        assert reader not in closed
        answers.released.set()
    assert closed == [consumer, reader]


class _NotesClose:
    """A consumer that notes its close. A call of a consumer while another thread closes it could end the process."""

    def __init__(self, consumer: Consumer, closed: list[Any]) -> None:
        self._consumer = consumer
        self._closed = closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def close(self) -> None:
        self._consumer.close()
        self._closed.append(self)
