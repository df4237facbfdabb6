"""The worker loop on a real Kafka: no order is lost or decided twice, and a bad record blocks no other (P5, P7, P9)."""

import re
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from msgspec import structs

from orderstream.kafka import client
from orderstream.kafka.envelope import Received
from orderstream.kafka.errors import PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import dead_letter_topic
from orderstream.postgres.connect import Connection
from orderstream.process import readiness
from orderstream.process.gathering import OF_RECORDS
from orderstream.settings import Settings
from orderstream.worker import consumer_health, runner, subscription
from orderstream.worker.failure_limit import MIN_FAILURES, TooManyFailuresError
from orderstream.worker.handler import BatchResult, Rejected, Timer
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import IN, OUT, Recorder
from tests.integration.worker.running import Running, running
from tests.support.contracts import assert_dead_letter_headers
from tests.support.topics import Letter, Tap, end_offsets, offsets_of, publish, publish_events
from tests.support.waiting import wait_until


def _caught_up(settings: Settings, group: str) -> bool:
    return offsets_of(settings.kafka_brokers, group, [IN]) == end_offsets(settings.kafka_brokers, [IN])


def _wait_caught_up(settings: Settings, group: str) -> None:
    wait_until(lambda: _caught_up(settings, group), 20, "every offset is committed")


def _seen(connection: Connection) -> dict[str, int]:
    return dict(connection.execute("SELECT order_id, seen FROM decisions").fetchall())


def _tap(settings: Settings, group: str) -> Tap:
    return Tap(settings.kafka_brokers, [OUT, dead_letter_topic(group)])


def test_waiting_records_are_decided_in_batches_and_their_events_published(
    settings: Settings, connection: Connection, group: str
) -> None:
    events = authorized(200)
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    publish_events(settings.kafka_brokers, events, {"traceparent": trace, "tracestate": b"a=b"})
    handler = Recorder(group)
    with _tap(settings, group) as tap, running(handler, settings):
        letters = tap.count(200)
        _wait_caught_up(settings, group)
    assert {letter.event().correlation_id for letter in letters} == {event.correlation_id for event in events}
    assert max(map(len, handler.batches)) > 10
    assert set(_seen(connection).values()) == {1}
    for letter in letters:
        event = letter.event()
        assert letter.headers["event-type"] == b"inventory.reserved"
        assert letter.headers["event-id"].decode() == str(event.id)
        assert (letter.headers["traceparent"], letter.headers["tracestate"]) == (trace, b"a=b")


def test_a_batch_has_a_largest_size(settings: Settings, connection: Connection, group: str) -> None:
    publish_events(settings.kafka_brokers, authorized(200))
    handler = Recorder(group)
    handler.gathering = structs.replace(OF_RECORDS, records_max=30)
    with _tap(settings, group) as tap, running(handler, settings):
        tap.count(200)
    assert max(map(len, handler.batches)) == 30
    assert set(_seen(connection).values()) == {1}


def test_a_single_record_does_not_wait_for_a_batch(settings: Settings, group: str) -> None:
    handler = Recorder(group)
    handler.gathering = structs.replace(OF_RECORDS, shortest_seconds=60.0, longest_seconds=60.0)
    with _tap(settings, group) as tap, running(handler, settings):
        publish_events(settings.kafka_brokers, authorized(1))
        tap.count(1)


def test_many_unknown_orders_are_dead_letters_and_do_not_stop_the_worker(settings: Settings, group: str) -> None:
    class Foreign(Recorder):
        def decide(self, tx: Connection, batch: Sequence[Received], prepared: None, /) -> BatchResult:
            tx.execute("INSERT INTO reservations (order_id, state) VALUES (%s, 'FAILED')", (batch[0].order_id,))
            return super().decide(tx, batch, prepared)

    publish_events(settings.kafka_brokers, authorized(MIN_FAILURES + 5))
    with _tap(settings, group) as tap, running(Foreign(group), settings):
        letters = tap.count(MIN_FAILURES + 5)
        _wait_caught_up(settings, group)
    assert {letter.headers["dlq-reason"] for letter in letters} == {b"UNKNOWN_ORDER"}


def test_a_duplicate_publishes_the_same_event(settings: Settings, connection: Connection, group: str) -> None:
    events = authorized(20)
    with _tap(settings, group) as tap, running(Recorder(group), settings):
        publish_events(settings.kafka_brokers, [*events, *events])
        tap.count(40)
        publish_events(settings.kafka_brokers, events)
        letters = tap.count(60)
    values = Counter(letter.value for letter in letters)
    assert len(values) == 20
    assert set(values.values()) == {3}
    assert len(_seen(connection)) == 20


def test_a_bad_record_is_a_dead_letter_and_the_others_of_its_batch_are_processed(
    settings: Settings, group: str
) -> None:
    events = authorized(10)
    headers = {"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "x-mine": b"\xff"}
    poison: list[tuple[str, bytes | None, bytes | None]] = [
        (IN, b"key", b"\xff\xfe no json"),
        (IN, None, b"{}"),
        (IN, b"key", None),
        (IN, events[0].correlation_id.encode(), b'{"type":"payment.authorized","version":2}'),
    ]
    with _tap(settings, group) as tap, running(Recorder(group), settings):
        places = publish(settings.kafka_brokers, poison, headers)
        publish_events(settings.kafka_brokers, events)
        letters = tap.count(14)
        _wait_caught_up(settings, group)
    dead = {
        (notes["dlq-topic"], int(notes["dlq-partition"]), int(notes["dlq-offset"])): (letter, notes)
        for letter in letters
        if letter.topic != OUT and (notes := assert_dead_letter_headers(letter.headers))
    }
    assert set(dead) == set(places)
    for place, (_, key, value), reason in zip(
        places, poison, ["NOT_JSON", "NO_KEY", "NO_VALUE", "UNKNOWN_VERSION"], strict=True
    ):
        letter, notes = dead[place]
        assert (letter.key, letter.value, notes["dlq-reason"], notes["dlq-attempts"]) == (key, value, reason, "0")
        assert {name: letter.headers[name] for name in headers} == headers


def test_a_record_larger_than_a_dead_letter_is_cut_and_blocks_no_other_record(settings: Settings, group: str) -> None:
    (event,) = authorized(1)
    value = b"{" * 5_000_000
    compressing = Producer(
        {"bootstrap.servers": settings.kafka_brokers, "compression.type": "gzip", "message.max.bytes": 10_000_000}
    )
    with _tap(settings, group) as tap, running(Recorder(group), settings):
        compressing.produce(IN, value, b"key")
        assert compressing.flush(20) == 0
        publish_events(settings.kafka_brokers, [event])
        letters = tap.count(2)
        _wait_caught_up(settings, group)
    (letter,) = (letter for letter in letters if letter.topic != OUT)
    assert letter.key == b"key"
    assert letter.value is not None
    assert value.startswith(letter.value)
    assert (letter.headers["dlq-reason"], letter.headers["dlq-cut-from"]) == (b"NOT_JSON", b"5000003")


@pytest.mark.parametrize(
    "error",
    [ValueError("a defect"), psycopg.errors.CheckViolation("refused"), psycopg.DataError("NUL")],
    ids=lambda error: type(error).__name__,
)
def test_a_failing_record_is_found_by_halving_the_batch(
    settings: Settings, connection: Connection, group: str, error: Exception
) -> None:
    events = authorized(64)
    bad = {events[7].correlation_id, events[50].correlation_id}

    def fault(_tx: Connection, batch: Sequence[Received]) -> None:
        if bad & {received.order_id for received in batch}:
            raise error

    publish_events(settings.kafka_brokers, events)
    with _tap(settings, group) as tap, running(Recorder(group, fault), settings):
        letters = tap.until(lambda seen: _orders(seen, OUT) and len(_both(seen)) == 64, 20, "all records are processed")
        _wait_caught_up(settings, group)
    assert _orders(letters, dead_letter_topic(group)) == bad
    assert _orders(letters, OUT) == {event.correlation_id for event in events} - bad == set(_seen(connection))
    for letter in letters:
        if letter.topic != OUT:
            notes = assert_dead_letter_headers(letter.headers)
            assert notes["dlq-reason"] == ("BAD_PAYLOAD" if isinstance(error, psycopg.DataError) else "FAILED")
            assert str(error) in notes["dlq-error"]
            assert int(notes["dlq-attempts"]) > 1


def _orders(letters: Sequence[Letter], topic: str) -> set[str]:
    return {letter.key.decode() for letter in letters if letter.topic == topic and letter.key}


def _both(letters: Sequence[Letter]) -> set[bytes | None]:
    return {letter.key for letter in letters}


@pytest.mark.parametrize(("size", "number"), [(900_000, 40), (100_000, 400)])
def test_a_batch_of_large_records_is_little_larger_than_the_records_fetched_ahead(
    settings: Settings, group: str, size: int, number: int
) -> None:
    sizes_bytes: list[int] = []

    def note_size(_tx: Connection, batch: Sequence[Received]) -> None:
        sizes_bytes.append(sum(len(received.record.value or b"") for received in batch))

    publish_events(settings.kafka_brokers, authorized(number, sku="S" * size))
    with _tap(settings, group) as tap, running(Recorder(group, note_size), settings):
        tap.count(number, limit_seconds=60)
        _wait_caught_up(settings, group)
    assert number * size <= sum(sizes_bytes)
    assert max(sizes_bytes) <= 16 << 20


def test_a_real_sql_error_rolls_back_only_its_own_part(settings: Settings, connection: Connection, group: str) -> None:
    events = authorized(16)
    bad = events[3].correlation_id

    def fault(tx: Connection, batch: Sequence[Received]) -> None:
        tx.execute("INSERT INTO inventory VALUES (%s, 1, 0)", (batch[0].order_id,))
        if bad in [received.order_id for received in batch]:
            tx.execute("INSERT INTO inventory VALUES ('X', -1, 0)")

    publish_events(settings.kafka_brokers, events)
    with _tap(settings, group) as tap, running(Recorder(group, fault), settings):
        tap.until(lambda seen: len(_both(seen)) == 16, 20, "all records are processed")
    (row,) = connection.execute("SELECT count(*) FROM inventory WHERE sku = %s", (bad,)).fetchall()
    assert row == (0,)
    assert bad not in _seen(connection)


def test_a_rejected_record_is_a_dead_letter_with_the_reason_of_the_handler(settings: Settings, group: str) -> None:
    events = authorized(5)

    class Rejecting(Recorder):
        def decide(self, tx: Connection, batch: Sequence[Received], prepared: None, /) -> BatchResult:
            known = [received for received in batch if received.order_id != events[2].correlation_id]
            unknown = [
                Rejected(received, "UNKNOWN_ORDER", received.order_id) for received in batch if received not in known
            ]
            return BatchResult(super().decide(tx, known, prepared).emit, unknown)

    publish_events(settings.kafka_brokers, events)
    with _tap(settings, group) as tap, running(Rejecting(group), settings):
        letters = tap.count(5)
    (dead,) = [letter for letter in letters if letter.topic != OUT]
    assert assert_dead_letter_headers(dead.headers)["dlq-reason"] == "UNKNOWN_ORDER"
    assert dead.key == events[2].correlation_id.encode()


def test_a_defect_stops_the_process_before_all_records_become_dead_letters(settings: Settings, group: str) -> None:
    def fault(_tx: Connection, _batch: Sequence[Received]) -> None:
        raise ValueError("a defect that hits every record")

    before = offsets_of(settings.kafka_brokers, group, [IN])
    publish_events(settings.kafka_brokers, authorized(60))
    assert isinstance(Running(Recorder(group, fault), settings).wait_end(), TooManyFailuresError)
    moved = sum(offsets_of(settings.kafka_brokers, group, [IN]).values()) - sum(before.values())
    dead = sum(end_offsets(settings.kafka_brokers, [dead_letter_topic(group)]).values())
    assert moved == dead <= MIN_FAILURES


class _Failing:
    """Fails the first decisions, then none."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left = times
        self._error = error

    def __call__(self, _tx: Connection, _batch: Sequence[Received]) -> None:
        if self.left:
            self.left -= 1
            raise self._error


TRANSIENT = [
    psycopg.OperationalError("the connection is lost"),
    psycopg.errors.SerializationFailure("40001"),
    psycopg.errors.DeadlockDetected("40P01"),
    psycopg.errors.LockNotAvailable("55P03"),
    psycopg.errors.AdminShutdown("57P01"),
    psycopg.errors.DiskFull("53100"),
    PublishError(KafkaError(KafkaError._MSG_TIMED_OUT), 1),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: f"{type(error).__name__}")
def test_after_a_transient_error_the_whole_batch_is_retried(settings: Settings, group: str, error: Exception) -> None:
    events = authorized(8)
    publish_events(settings.kafka_brokers, events)
    handler = Recorder(group, _Failing(2, error))
    with _tap(settings, group) as tap, running(handler, settings):
        letters = tap.count(8)
        _wait_caught_up(settings, group)
    assert _orders(letters, OUT) == {event.correlation_id for event in events}
    assert handler.batches[0] == handler.batches[1] == handler.batches[2]


def test_a_lost_connection_is_replaced(settings: Settings, connection: Connection, group: str) -> None:
    fail_once = _Failing(1, ValueError())

    def fault(tx: Connection, _batch: Sequence[Received]) -> None:
        if fail_once.left:
            fail_once.left = 0
            connection.execute("SELECT pg_terminate_backend(%s)", (tx.info.backend_pid,))

    publish_events(settings.kafka_brokers, authorized(8))
    with _tap(settings, group) as tap, running(Recorder(group, fault), settings):
        tap.count(8)
    assert set(_seen(connection).values()) == {1}


def test_a_batch_is_rewound_after_its_retry_time_and_received_again(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(runner, "BACKOFF_MAX_SECONDS", 0.1)
    events = authorized(8)
    publish_events(settings.kafka_brokers, events)
    over = threading.Event()

    def fail(_tx: Connection, _batch: Sequence[Received]) -> None:
        if not over.is_set():
            raise psycopg.OperationalError("Postgres is gone")

    handler = Recorder(group, fail)
    with _tap(settings, group) as tap, running(handler, settings):
        wait_until(lambda: len(handler.batches) >= 8, 20, "it is retried")
        assert not _caught_up(settings, group)
        over.set()
        letters = tap.count(8)
        _wait_caught_up(settings, group)
    assert _orders(letters, OUT) == {event.correlation_id for event in events}


@pytest.mark.parametrize("error", [psycopg.errors.UndefinedColumn("42703"), psycopg.errors.InvalidPassword("28P01")])
def test_a_permanent_error_stops_the_worker_at_once(settings: Settings, group: str, error: Exception) -> None:
    before = offsets_of(settings.kafka_brokers, group, [IN])
    publish_events(settings.kafka_brokers, authorized(4))
    handler = Recorder(group, _Failing(100, error))
    assert Running(handler, settings).wait_end() is error
    assert len(handler.batches) == 1
    assert offsets_of(settings.kafka_brokers, group, [IN]) == before


class _Gate:
    """Holds every publish until the gate is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()


def test_offsets_move_only_after_kafka_has_acknowledged(
    settings: Settings, connection: Connection, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = _Gate()

    class Held(Publisher):
        def publish(self, records: Sequence[Publication]) -> None:
            gate.reached.set()
            assert gate.open.wait(20)
            super().publish(records)

    monkeypatch.setattr(runner, "Publisher", Held)
    before = offsets_of(settings.kafka_brokers, group, [IN])
    publish_events(settings.kafka_brokers, authorized(4))
    with _tap(settings, group) as tap, ExitStack() as stack:
        stack.callback(gate.open.set)
        stack.enter_context(running(Recorder(group), settings))
        assert gate.reached.wait(20)
        wait_until(lambda: len(_seen(connection)) > 0, 5, "the decision is durable before its events leave")
        assert offsets_of(settings.kafka_brokers, group, [IN]) == before
        gate.open.set()
        tap.count(4)
        _wait_caught_up(settings, group)


def test_an_unacknowledged_publish_is_retried(settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([PublishError(KafkaError(KafkaError._MSG_TIMED_OUT), 1)] * 2)

    class Failing(Publisher):
        def publish(self, records: Sequence[Publication]) -> None:
            super().publish(records)
            if error := next(failures, None):
                raise error

    monkeypatch.setattr(runner, "Publisher", Failing)
    publish_events(settings.kafka_brokers, authorized(4))
    with _tap(settings, group) as tap, running(Recorder(group), settings):
        tap.until(lambda seen: len(_both(seen)) == 4, 20, "all events are published")
        _wait_caught_up(settings, group)
        assert len({letter.value for letter in tap.read()}) == 4


@pytest.mark.parametrize("code", [KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID])
def test_a_worker_drops_its_batch_if_kafka_refuses_the_offset_commit(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refusals = iter([KafkaException(KafkaError(code))])

    class Refused:
        def __init__(self, consumer: object) -> None:
            self._consumer = consumer

        def __getattr__(self, name: str) -> object:
            if name == "commit" and (error := next(refusals, None)):
                raise error
            return getattr(self._consumer, name)

    monkeypatch.setattr(
        subscription, "consumer", lambda settings, group, _options=None: Refused(client.consumer(settings, group))
    )
    with _tap(settings, group) as tap, running(Recorder(group), settings):
        publish_events(settings.kafka_brokers, authorized(1))
        tap.count(1)
        publish_events(settings.kafka_brokers, authorized(40))
        tap.count(41)
    assert next(refusals, None) is None


def test_two_consumers_share_the_work_before_and_after_a_rebalance(
    settings: Settings, connection: Connection, group: str
) -> None:
    first_handler, second_handler = Recorder(group), Recorder(group)
    events = authorized(300)
    with _tap(settings, group) as tap, ExitStack() as stack:
        first = stack.enter_context(running(first_handler, settings))
        publish_events(settings.kafka_brokers, events[:100])
        tap.until(lambda seen: len(_both(seen)) == 100, 20, "the first one works alone")
        with running(second_handler, settings):
            publish_events(settings.kafka_brokers, events[100:200])
            tap.until(lambda seen: len(_both(seen)) == 200, 20, "they work together")
            wait_until(lambda: first_handler.batches and second_handler.batches, 5, "both have work")
            first.stop()
            publish_events(settings.kafka_brokers, events[200:])
            tap.until(lambda seen: len(_both(seen)) == 300, 20, "the second one works alone")
            _wait_caught_up(settings, group)
    assert set(_seen(connection)) == {event.correlation_id for event in events}
    values = {letter.key: letter.value for letter in tap.letters}
    assert all(letter.value == values[letter.key] for letter in tap.letters)


def test_timers_run_with_and_without_records(settings: Settings, group: str) -> None:
    runs: list[str] = []
    due = iter([True, True, False])
    transient = iter([psycopg.OperationalError("gone")])

    def often(_connection: Connection) -> bool:
        runs.append("often")
        return False

    def in_rounds(_connection: Connection) -> bool:
        runs.append("in-rounds")
        return next(due, False)

    def failing(_connection: Connection) -> bool:
        runs.append("failing")
        if error := next(transient, None):
            raise error
        return False

    timers = (Timer("often", 0.2, often), Timer("in-rounds", 3600, in_rounds), Timer("failing", 0.2, failing))
    with _tap(settings, group) as tap, running(Recorder(group, timers=timers), settings):
        wait_until(lambda: runs.count("often") >= 3, 10, "a timer runs again")
        wait_until(lambda: runs.count("failing") >= 2, 10, "a timer that failed runs again")
        publish_events(settings.kafka_brokers, authorized(5))
        tap.count(5)
        seen = runs.count("often")
        wait_until(lambda: runs.count("often") > seen, 10, "a timer runs after a batch")
    assert runs.count("in-rounds") == 3


def test_a_stalled_consumer_is_replaced(settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_health, "STALLED_SECONDS", 0.5)
    monkeypatch.setattr(subscription, "MEASURE_SECONDS", 0.1)
    stalled: list[Consumer] = []

    def stall(_tx: Connection, _batch: Sequence[Received]) -> None:
        if not stalled:
            stalled.append(loop.runner._subscription._consumer)
            stalled[0].pause(stalled[0].assignment())

    with _tap(settings, group) as tap, running(Recorder(group, stall), settings) as loop:
        publish_events(settings.kafka_brokers, authorized(1))
        tap.count(1)
        publish_events(settings.kafka_brokers, authorized(1))
        tap.count(2)
        replaced = loop.runner._subscription._consumer
        assert replaced is not stalled[0]
        # A busy machine may need more than the short limit for the next records.
        monkeypatch.setattr(consumer_health, "STALLED_SECONDS", 5.0)
        publish_events(settings.kafka_brokers, authorized(20))
        _wait_caught_up(settings, group)
        assert loop.runner._subscription._consumer is replaced


def test_a_failing_batch_is_reported_until_it_succeeds(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "NOT_READY_AFTER_SECONDS", 0.5)
    database = settings.postgres_url.rpartition("/")[2]
    monkeypatch.setattr(runner, "BACKOFF_MAX_SECONDS", 0.2)
    with psycopg.connect(settings.postgres_url, autocommit=True) as operator:
        operator.execute("CREATE TABLE seen (id TEXT)")

        class Writer(Recorder):
            """A recorder that writes, as every worker does."""

            def decide(self, connection: Any, batch: Any, prepared: Any) -> Any:
                connection.execute("INSERT INTO seen VALUES ('one')")
                return super().decide(connection, batch, prepared)

        with running(Writer(group), settings) as loop:
            operator.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on".encode())
            operator.execute(_END_SESSIONS, [group])
            publish_events(settings.kafka_brokers, authorized(1))
            # A slow attempt or a slow Kafka is also reported.
            wait_until(
                lambda: _READ_ONLY.match(loop.runner.readiness.problem() or ""), 20, "the worker reports the failure"
            )
            operator.execute("SET default_transaction_read_only = off")
            operator.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only".encode())
            operator.execute(_END_SESSIONS, [group])
            wait_until(lambda: loop.runner.readiness.problem() is None, 20, "the worker reports no failure")


_READ_ONLY = re.compile("has (finished no batch|not reached PostgreSQL) for .*read-only")
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = %s AND datname = current_database()"
)
