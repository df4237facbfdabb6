"""The offsets: they move after the batch is settled, they are committed for certain, and a batch comes again whole."""

from collections.abc import Callable, Sequence
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
    """Takes the place of a consumer: notes each commit, and refuses the first ones with these codes."""

    def __init__(self, refusals: Sequence[int]) -> None:
        self.count = 0
        self._refusals = iter(refusals)

    def of(self, settings: Settings, group: str) -> "_Watched":
        """Return a real consumer whose commits come by here."""
        return _Watched(client.consumer(settings, group), self)

    def begin(self, asynchronous: bool) -> None:
        """Note a commit, which has to wait for its answer; raise its refusal, if it has one."""
        assert not asynchronous, "an asynchronous commit may fail unseen"
        self.count += 1
        if code := next(self._refusals, None):
            raise KafkaException(KafkaError(code))


class _Watched:
    def __init__(self, consumer: Any, commits: Commits) -> None:
        self._consumer = consumer
        self._commits = commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def commit(self, offsets: Any, asynchronous: bool = True) -> Any:
        self._commits.begin(asynchronous)
        return self._consumer.commit(offsets=offsets, asynchronous=asynchronous)


def _caught_up(settings: Settings, group: str) -> bool:
    return offsets_of(settings.kafka_brokers, group, [IN]) == end_offsets(settings.kafka_brokers, [IN])


def _wait_caught_up(settings: Settings, group: str) -> None:
    wait_until(lambda: _caught_up(settings, group), 20, "every offset is committed")


def test_a_commit_that_fails_for_a_moment_is_tried_again(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits([KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError._TIMED_OUT])
    monkeypatch.setattr(subscription, "consumer", commits.of)
    with running(Recorder(group), settings):
        publish_events(settings.kafka_brokers, authorized(1))
        _wait_caught_up(settings, group)
    assert commits.count == 3


@pytest.mark.parametrize(
    ("code", "attempts"), [(KafkaError.ILLEGAL_GENERATION, 1), (KafkaError._TIMED_OUT, subscription.COMMIT_ATTEMPTS)]
)
def test_a_commit_that_cannot_succeed_is_given_up_and_its_records_come_again_or_with_the_next(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch, code: int, attempts: int
) -> None:
    commits = Commits([code] * attempts)
    monkeypatch.setattr(subscription, "consumer", commits.of)
    before = offsets_of(settings.kafka_brokers, group, [IN])
    with Tap(settings.kafka_brokers, [OUT]) as tap, running(Recorder(group), settings):
        (event,) = authorized(1)
        publish_events(settings.kafka_brokers, [event])
        wait_until(lambda: commits.count == attempts, 20, "the commit is tried")
        tap.count(1)
        assert offsets_of(settings.kafka_brokers, group, [IN]) == before
        publish_events(settings.kafka_brokers, [event])
        _wait_caught_up(settings, group)
    assert commits.count == attempts + 1


def _failing(_connection: Connection, _batch: Sequence[Received]) -> None:
    raise psycopg.OperationalError("Postgres is away")


def test_a_stop_while_a_batch_is_repeated_is_at_once_and_moves_no_offset(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BACKOFF_FIRST_SECONDS", 600.0)
    before = offsets_of(settings.kafka_brokers, group, [IN])
    publish_events(settings.kafka_brokers, authorized(4))
    handler = Recorder(group, _failing)
    with running(handler, settings):
        wait_until(lambda: handler.batches, 20, "the batch is tried")
    assert offsets_of(settings.kafka_brokers, group, [IN]) == before


def test_a_batch_with_poison_in_it_that_goes_back_comes_again_whole(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poison is there before the loop starts, so that it shares a batch, and partitions, with good records."""
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0)
    failures = iter(range(3))

    def fail_thrice(tx: Connection, batch: Sequence[Received]) -> None:
        if next(failures, None) is not None:
            _failing(tx, batch)

    events = authorized(60)
    poison: list[tuple[str, bytes | None, bytes | None]] = [(IN, str(number).encode(), b"{") for number in range(15)]
    publish(settings.kafka_brokers, poison)
    publish_events(settings.kafka_brokers, events)
    publish(settings.kafka_brokers, poison)
    handler = Recorder(group, fail_thrice)
    with Tap(settings.kafka_brokers, [OUT, dead_letter_topic(group)]) as tap, running(handler, settings):
        letters = tap.count(90)
        _wait_caught_up(settings, group)
    assert {one.key for one in letters if one.topic == OUT} == {event.correlation_id.encode() for event in events}
    assert next(failures, None) is None


def _ends(handler: Recorder, settings: Settings) -> BaseException | None:
    return Running(handler, settings).wait_end()


def test_a_database_that_is_not_there_ends_the_loop_before_any_record(settings: Settings, group: str) -> None:
    server = settings.postgres_url.rpartition("/")[0]
    wrong = settings.model_copy(update={"postgres_url": f"{server}/not_there"})
    assert isinstance(_ends(Recorder(group), wrong), psycopg.OperationalError)


def test_a_timer_that_no_retry_can_help_ends_the_loop(settings: Settings, group: str) -> None:
    error = psycopg.errors.UndefinedTable("42P01")

    def fail(_connection: Connection) -> bool:
        raise error

    assert _ends(Recorder(group, timers=[Timer("broken", 0, fail)]), settings) is error


def test_the_loop_shows_that_it_comes_round_and_that_kafka_has_not_given_it_partitions(
    settings: Settings, group: str
) -> None:
    alone = settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"})
    with running(Recorder(group), alone, ready=False) as loop:
        wait_until(lambda: loop.runner._session.ready, 20, "Postgres is reached")
        beat = loop.runner.beat
        wait_until(lambda: loop.runner.beat > beat, 20, "it comes round")
        assert not loop.runner.ready


def test_after_the_commit_a_decision_is_seen_by_others_and_nothing_is_published_yet(
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
    """The times at which the loop looked for missing topics."""
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
    ids=["consumer", "producer", "producer-that-knew-it"],
)
def test_a_topic_that_is_gone_has_the_missing_topics_made_once_in_a_while(
    settings: Settings, group: str, ensured: list[Settings], report: Callable[[runner.Runner[None]], None]
) -> None:
    with running(Recorder(group), settings) as loop:
        report(loop.runner)
        report(loop.runner)
        assert ensured == [settings]


def test_a_consumer_whose_topics_are_gone_may_be_left_out(
    settings: Settings, group: str, ensured: list[Settings]
) -> None:
    with running(Recorder(group), settings) as loop:
        assert not loop.runner._subscription._health._topics_were_lost
        loop.runner._subscription._client_error(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
        assert loop.runner._subscription._health._topics_were_lost


def test_a_client_that_has_failed_for_good_ends_the_loop(settings: Settings, group: str) -> None:
    with running(Recorder(group), settings) as loop, pytest.raises(KafkaException):
        loop.runner._subscription._client_error(KafkaError(KafkaError._FATAL, "fenced", fatal=True))


def test_a_failure_after_the_commit_repeats_the_recorded_decision(
    settings: Settings, group: str, connection: Connection
) -> None:
    """The decision is durable and its answer is not sent: what the database knows is told, once."""
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
