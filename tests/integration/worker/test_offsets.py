"""Offsets are committed after the batch is processed, commits are retried, and a rewound batch comes back complete."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import psycopg
import pytest
from confluent_kafka import KafkaError, KafkaException

from orderstream.kafka import client
from orderstream.kafka.envelope import Received
from orderstream.kafka.errors import PublishError
from orderstream.kafka.topics import dead_letter_topic
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from orderstream.worker import runner, subscription
from orderstream.worker.handler import Timer
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import IN, OUT, Recorder
from tests.integration.worker.running import Running, running
from tests.support.topics import Tap, end_offsets, offsets_of, publish, publish_events
from tests.support.waiting import wait_until


class Commits:
    """Counts the commits of a consumer, and refuses the first ones with the given codes. 0 does not refuse."""

    def __init__(self, refusals: Sequence[int]) -> None:
        self.count = 0
        self._refusals = iter(refusals)

    def of(self, settings: Settings, group: str, options: Mapping[str, Any] = MappingProxyType({})) -> "_Watched":
        """Return a real consumer whose commits are counted here."""
        return _Watched(client.consumer(settings, group, options), self, options.get("on_commit"))

    def refusal(self) -> KafkaError | None:
        """Count a commit, and return its refusal, if it has one."""
        self.count += 1
        code = next(self._refusals, 0)
        return KafkaError(code) if code else None


class _Watched:
    def __init__(self, consumer: Any, commits: Commits, on_commit: Any) -> None:
        self._consumer = consumer
        self._commits = commits
        self._on_commit = on_commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def commit(self, offsets: Any, asynchronous: bool = True) -> Any:
        if refusal := self._commits.refusal():
            if not asynchronous:
                raise KafkaException(refusal)
            return self._on_commit(refusal, offsets)
        return self._consumer.commit(offsets=offsets, asynchronous=asynchronous)


def _caught_up(settings: Settings, group: str) -> bool:
    return offsets_of(settings.kafka_brokers, group, [IN]) == end_offsets(settings.kafka_brokers, [IN])


def _wait_caught_up(settings: Settings, group: str) -> None:
    wait_until(lambda: _caught_up(settings, group), 20, "every offset is committed")


@pytest.fixture
def no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not measure the lag. A measurement finds an offset that is behind, and commits it."""
    monkeypatch.setattr(subscription, "MEASURE_SECONDS", math.inf)


@pytest.mark.usefixtures("no_measurement")
def test_an_offset_commit_is_retried_after_a_transient_error(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits([KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError._TIMED_OUT])
    monkeypatch.setattr(subscription, "consumer", commits.of)
    with running(Recorder(group), settings):
        publish_events(settings.kafka_brokers, authorized(1))
        _wait_caught_up(settings, group)
    assert commits.count >= 3


@pytest.mark.usefixtures("no_measurement")
def test_if_the_group_refuses_a_commit_of_offsets_the_next_commit_moves_them(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits([KafkaError.ILLEGAL_GENERATION])
    monkeypatch.setattr(subscription, "consumer", commits.of)
    before = offsets_of(settings.kafka_brokers, group, [IN])
    with Tap(settings.kafka_brokers, [OUT]) as tap, running(Recorder(group), settings):
        (event,) = authorized(1)
        publish_events(settings.kafka_brokers, [event])
        wait_until(lambda: commits.count == 1, 20, "the commit is attempted")
        tap.count(1)
        assert offsets_of(settings.kafka_brokers, group, [IN]) == before
        publish_events(settings.kafka_brokers, [event])
        _wait_caught_up(settings, group)
    assert commits.count >= 2


@pytest.mark.usefixtures("no_measurement")
@pytest.mark.parametrize(
    ("code", "attempts"), [(KafkaError.ILLEGAL_GENERATION, 1), (KafkaError._TIMED_OUT, subscription.COMMIT_ATTEMPTS)]
)
def test_the_commit_at_the_end_is_repeated_a_few_times(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch, code: int, attempts: int
) -> None:
    commits = Commits([0, *[code] * attempts])
    monkeypatch.setattr(subscription, "consumer", commits.of)
    monkeypatch.setattr(subscription, "COMMIT_SECONDS", 3_600.0)
    with running(Recorder(group), settings) as loop:
        for number in (1, 2):
            publish_events(settings.kafka_brokers, authorized(1))
            loop.wait_finished(number)
        wait_until(lambda: commits.count == 1, 20, "the first commit is attempted")
    assert commits.count == 1 + attempts


def _failing(_connection: Connection, _batch: Sequence[Received]) -> None:
    raise psycopg.OperationalError("Postgres is down")


def test_a_stop_during_the_retries_of_a_batch_is_immediate_and_commits_no_offset(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BACKOFF_FIRST_SECONDS", 600.0)
    before = offsets_of(settings.kafka_brokers, group, [IN])
    publish_events(settings.kafka_brokers, authorized(4))
    handler = Recorder(group, _failing)
    with running(handler, settings):
        wait_until(lambda: handler.batches, 20, "the batch is attempted")
    assert offsets_of(settings.kafka_brokers, group, [IN]) == before


def test_a_rewound_batch_with_bad_records_is_received_again_completely(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bad records are published before the loop starts, so that they share a batch with good records."""
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0)
    failures = iter(range(3))

    def fail_thrice(tx: Connection, batch: Sequence[Received]) -> None:
        if next(failures, None) is not None:
            _failing(tx, batch)

    events = authorized(60)
    bad_records: list[tuple[str, bytes | None, bytes | None]] = [
        (IN, str(number).encode(), b"{") for number in range(15)
    ]
    publish(settings.kafka_brokers, bad_records)
    publish_events(settings.kafka_brokers, events)
    publish(settings.kafka_brokers, bad_records)
    handler = Recorder(group, fail_thrice)
    with Tap(settings.kafka_brokers, [OUT, dead_letter_topic(group)]) as tap, running(handler, settings):
        letters = tap.count(90)
        _wait_caught_up(settings, group)
    assert {letter.key for letter in letters if letter.topic == OUT} == {
        event.correlation_id.encode() for event in events
    }
    assert next(failures, None) is None


def _ends(handler: Recorder, settings: Settings) -> BaseException | None:
    return Running(handler, settings).wait_end()


def test_a_missing_database_ends_the_loop_before_the_first_record(settings: Settings, group: str) -> None:
    server = settings.postgres_url.rpartition("/")[0]
    wrong = settings.model_copy(update={"postgres_url": f"{server}/not_there"})
    assert isinstance(_ends(Recorder(group), wrong), psycopg.OperationalError)


def test_a_permanent_error_of_a_timer_ends_the_loop(settings: Settings, group: str) -> None:
    error = psycopg.errors.UndefinedTable("42P01")

    def fail(_connection: Connection) -> bool:
        raise error

    assert _ends(Recorder(group, timers=[Timer("broken", 0, fail)]), settings) is error


def test_without_kafka_the_loop_makes_progress_and_is_not_ready(settings: Settings, group: str) -> None:
    alone = settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"})
    with running(Recorder(group), alone, ready=False) as loop:
        wait_until(lambda: loop.runner._session.ready, 20, "Postgres is reached")
        beat = loop.runner.beat
        wait_until(lambda: loop.runner.beat > beat, 20, "a new round begins")
        assert not loop.runner.ready


def test_after_commit_runs_between_the_commit_of_a_decision_and_the_publish_of_its_event(
    settings: Settings, group: str, postgres_url: str
) -> None:
    seen: list[tuple[int, int]] = []
    events = authorized(3)
    with Tap(settings.kafka_brokers, [OUT]) as tap:

        def look() -> None:
            with connect(postgres_url, "another") as another:
                seen.append((len(another.execute("TABLE decisions").fetchall()), len(tap.so_far())))

        publish_events(settings.kafka_brokers, events[:1])
        with running(Recorder(group, after_commit=look), settings):
            tap.count(1)
    assert seen == [(1, 0)]


@pytest.fixture
def ensured(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of each check for missing topics."""
    calls: list[Settings] = []

    def ensure(settings: Settings) -> list[str]:
        calls.append(settings)
        return []

    monkeypatch.setattr(subscription, "ensure_topics", ensure)
    return calls


@pytest.mark.parametrize(
    "report",
    [
        lambda loop: loop._subscription._client_error(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)),
        lambda loop: loop._recover(PublishError(KafkaError(KafkaError._UNKNOWN_TOPIC), 1)),
        lambda loop: loop._recover(PublishError(KafkaError(KafkaError._MSG_TIMED_OUT), 1)),
    ],
    ids=["consumer", "producer", "producer-with-a-timeout"],
)
def test_missing_topics_are_created_at_most_once_a_second(
    settings: Settings,
    group: str,
    ensured: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    report: Callable[[runner.Runner[None]], None],
) -> None:
    """The second is a minute here, because a busy machine may need more than a second between the reports."""
    monkeypatch.setattr(subscription, "ENSURE_SECONDS", 60.0)
    with running(Recorder(group), settings) as loop:
        loop.runner._subscription._ensured = float("-inf")
        report(loop.runner)
        report(loop.runner)
        assert ensured == [settings]


def test_the_subscription_records_that_its_topics_were_lost(
    settings: Settings, group: str, ensured: list[Settings]
) -> None:
    with running(Recorder(group), settings) as loop:
        assert not loop.runner._subscription._health._topics_were_lost
        loop.runner._subscription._client_error(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
        assert loop.runner._subscription._health._topics_were_lost


def test_a_fatal_client_error_ends_the_loop(settings: Settings, group: str) -> None:
    with running(Recorder(group), settings) as loop, pytest.raises(KafkaException):
        loop.runner._subscription._client_error(KafkaError(KafkaError._FATAL, "fenced", fatal=True))


def test_after_a_failure_between_commit_and_publish_the_recorded_decision_is_published_once(
    settings: Settings, group: str, connection: Connection
) -> None:
    """The decision is durable and its event is not published. The retry publishes the recorded decision once."""
    failures = iter([psycopg.OperationalError("the connection is lost after the commit")])

    def fail_once() -> None:
        if error := next(failures, None):
            raise error

    (event,) = authorized(1)
    publish_events(settings.kafka_brokers, [event])
    with (
        Tap(settings.kafka_brokers, [OUT, dead_letter_topic(group)]) as tap,
        running(Recorder(group, after_commit=fail_once), settings),
    ):
        (letter,) = tap.count(1)
        _wait_caught_up(settings, group)
        assert len(tap.so_far()) == 1
    assert connection.execute("SELECT decided_at, seen FROM decisions").fetchall() == [(letter.event().occurred_at, 2)]
