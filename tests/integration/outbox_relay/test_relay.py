"""The relay on real servers: every event of the outbox reaches Kafka, even if Kafka answers late or fails (P1, P5)."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

import pytest
from confluent_kafka import KafkaError

from orderstream.domain.events import Event, Payload, build, topic_of
from orderstream.kafka import client, publisher
from orderstream.kafka.envelope import encode
from orderstream.kafka.errors import PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.outbox_relay import relay
from orderstream.outbox_relay.relay import SERVICE, Relay
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.outbox import SQL, OutboxRow, append
from orderstream.process import readiness
from orderstream.process.gathering import OF_RECORDS
from orderstream.settings import Settings
from orderstream.telemetry import metrics
from orderstream.telemetry.setup import start
from orderstream.telemetry.tracing import TraceContext
from tests.integration.decisions.orders import created
from tests.integration.outbox_relay.running import running
from tests.support.samples import AT, order_updated
from tests.support.servers import Server, Servers
from tests.support.topics import Letter, Tap
from tests.support.waiting import wait_until

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
CREATED, UPDATED = topic_of("order.created"), topic_of("order.updated")
CLAIMED = """
SELECT bool_and(xmax IN (SELECT transactionid FROM pg_locks WHERE locktype = 'transactionid' AND granted)) FROM outbox
"""


def _events(number: int) -> list[Event[Payload]]:
    return [created(str(uuid4())) for _ in range(number)]


def _append(connection: Connection, events: Sequence[Event[Payload]]) -> None:
    with connection.transaction():
        append(connection, [OutboxRow(event, TraceContext(TRACEPARENT, "a=b")) for event in events])


def _waiting(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM outbox").fetchone()
    assert row is not None
    number: int = row[0]
    return number


def _wait_empty(connection: Connection) -> None:
    wait_until(lambda: _waiting(connection) == 0, 20, "the outbox is empty")


def _assert_published(letters: Sequence[Letter], events: Sequence[Event[Payload]]) -> None:
    assert {letter.event().id: letter.event() for letter in letters} == {event.id: event for event in events}
    for letter in letters:
        assert letter.headers == {
            "traceparent": TRACEPARENT.encode(),
            "tracestate": b"a=b",
            "event-type": b"order.created",
            "event-id": str(letter.event().id).encode(),
        }


def test_waiting_rows_are_published_once_and_deleted(settings: Settings, connection: Connection) -> None:
    events = _events(1_200)
    _append(connection, events)
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        _assert_published(tap.count(1_200), events)
        _wait_empty(connection)


def test_rows_beyond_the_bytes_of_a_batch_are_in_the_next_batch(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = str(uuid4())
    batches: list[tuple[int, int]] = []

    class Noting(Publisher):
        def publish(self, records: Sequence[Publication]) -> None:
            batches.append((len(records), _waiting(connection)))
            super().publish(records)

    monkeypatch.setattr(relay, "Publisher", Noting)
    events = [build(order_updated(version, order_id), AT) for version in range(1, 10)]
    monkeypatch.setattr(relay, "BATCH_BYTES", 2 * len(encode(events[0])) + 1)
    _append(connection, events)
    with Tap(settings.kafka_brokers, [UPDATED]) as tap, running(settings):
        assert [letter.event() for letter in tap.count(9)] == events
        _wait_empty(connection)
    assert [(size, waiting) for size, waiting in batches if size] == [(3, 9), (3, 6), (3, 3)]


def test_a_commit_wakes_the_relay(settings: Settings, connection: Connection) -> None:
    slow = settings.model_copy(update={"relay_poll_seconds": 30})
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(slow):
        for number in range(1, 6):
            _append(connection, _events(1))
            tap.count(number, limit_seconds=20)
        _end_the_long_wait(slow, connection)


def _end_the_long_wait(slow: Settings, connection: Connection) -> None:
    """Wake the relay, and let it poll often from now on. Its stop would wait for the end of a long poll."""
    slow.__dict__["relay_poll_seconds"] = 0.1
    _append(connection, _events(1))


LARGE = OF_RECORDS.from_items


@pytest.mark.parametrize(("rows", "full"), [(LARGE - 1, False), (LARGE, False), (1, True)])
def test_the_relay_takes_all_notices_of_its_connection_at_once(
    settings: Settings, connection: Connection, postgres_url: str, rows: int, full: bool
) -> None:
    """The connection keeps every notice. Notices that stay there would pile up, and wake the relay without need."""
    subject = relay.Relay(settings, start("outbox-relay", settings), threading.Event())
    with connect(postgres_url, "relay") as listening:
        listening.execute(relay.SQL["listen"])
        for _ in range(5):
            connection.execute(SQL["wake_relay"])
        listening.execute("SELECT")
        subject._await_more(listening, rows, full=full)
        assert list(listening.notifies(timeout=0)) == []


def test_the_relay_finds_rows_without_a_notice(settings: Settings, connection: Connection) -> None:
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        (event,) = _events(1)
        connection.execute(
            "INSERT INTO outbox (topic, order_id, event_id, value) VALUES (%s, %s, %s, %s)",
            (CREATED, event.correlation_id, event.id, encode(event).decode()),
        )
        assert [letter.event() for letter in tap.count(1)] == [event]


def test_rows_stay_until_a_late_acknowledgement_of_kafka(
    settings: Settings, connection: Connection, servers: Servers
) -> None:
    events = _events(20)
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        servers.kafka.pause()
        try:
            _append(connection, events)
            wait_until(lambda: _claimed(connection), 10, "the relay has taken the rows")
            assert _waiting(connection) == 20
        finally:
            servers.kafka.resume()
        _assert_published(tap.until(lambda seen: len(seen) >= 20, 40, "the events are published"), events)
        _wait_empty(connection)


def _claimed(connection: Connection) -> bool:
    """Say whether an open transaction has locked or deleted every row of the outbox.

    This takes no lock itself. The relay would skip a row that the test has locked.
    """
    row = connection.execute(CLAIMED).fetchone()
    assert row is not None
    return row[0] is True


def test_events_wait_while_kafka_is_down_and_are_published_later(
    settings: Settings, connection: Connection, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay also measures how many wait, because that is when an operator wants to know."""
    monkeypatch.setattr(relay, "MEASURE_SECONDS", 0)
    monkeypatch.setattr(client, "DELIVERY_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(publisher, "FLUSH_TIMEOUT_SECONDS", 3)
    with running(settings):
        with _stopped(servers.kafka):
            _append(connection, _events(5))
            wait_until(lambda: _claimed(connection), 10, "the relay tries")
            wait_until(lambda: not _claimed(connection), 20, "the relay gives the rows back")
            assert _waiting(connection) == 5
            wait_until(lambda: metrics.OUTBOX_ROWS._value.get() == 5, 20, "the metric has the rows that wait")
        with Tap(settings.kafka_brokers, [CREATED]) as tap:
            _append(connection, last := _events(1))
            tap.until(
                lambda seen: last[0].id in {record.event().id for record in seen}, 40, "the relay publishes again"
            )
            _wait_empty(connection)
        wait_until(lambda: metrics.OUTBOX_ROWS._value.get() == 0, 20, "the metric says that no row waits")


def test_a_relay_that_starts_without_kafka_measures_the_rows_after_its_first_attempt(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[None] = []

    class Failing(Publisher):
        def publish(self, records: Sequence[Publication]) -> None:
            attempts.append(None)
            raise PublishError(KafkaError(KafkaError._MSG_TIMED_OUT), len(records))

    measure = Relay._measure
    measured: list[int] = []

    def note(own: Relay, used: Connection) -> None:
        before = own._measured
        measure(own, used)
        if own._measured > before:
            measured.append(len(attempts))

    monkeypatch.setattr(relay, "Publisher", Failing)
    monkeypatch.setattr(Relay, "_measure", note)
    _append(connection, _events(3))
    with running(settings):
        wait_until(lambda: measured, 20, "the relay measures")
    assert measured[0] == 1
    assert metrics.OUTBOX_ROWS._value.get() == 3


def test_no_row_that_is_ready_waits_for_the_measurement(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measurement here ends only after the row that was due at the same time has reached Kafka."""
    measured = threading.Event()

    def measure(_relay: Relay, _connection: Connection) -> None:
        tap.count(1)
        measured.set()

    monkeypatch.setattr(Relay, "_measure", measure)
    _append(connection, _events(1))
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        assert measured.wait(20)


@contextmanager
def _stopped(server: Server) -> Iterator[None]:
    """Stop a server during the block."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def test_rows_that_kafka_did_not_acknowledge_are_published_again(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([PublishError(KafkaError(KafkaError._MSG_TIMED_OUT), 1)])

    class Failing(Publisher):
        def publish(self, records: Sequence[Publication]) -> None:
            super().publish(records)
            if error := next(failures, None):
                raise error

    monkeypatch.setattr(relay, "Publisher", Failing)
    events = _events(3)
    _append(connection, events)
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings):
        letters = tap.count(6)
        _wait_empty(connection)
    _assert_published(letters, events)
    assert len({letter.value for letter in letters}) == 3


def test_relays_share_the_work_and_publish_nothing_twice(settings: Settings, connection: Connection) -> None:
    events = _events(2_000)
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(settings), running(settings):
        for first in range(0, 2_000, 100):
            _append(connection, events[first : first + 100])
        _assert_published(tap.count(2_000), events)
        _wait_empty(connection)


def test_after_a_lost_connection_the_relay_connects_and_listens_again(
    settings: Settings, connection: Connection
) -> None:
    slow = settings.model_copy(update={"relay_poll_seconds": 30})
    with Tap(settings.kafka_brokers, [CREATED]) as tap, running(slow):
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'outbox-relay' AND datname = current_database()"
        )
        for number in range(1, 4):
            _append(connection, _events(1))
            tap.count(number, limit_seconds=20)
        _end_the_long_wait(slow, connection)


def test_a_relay_that_publishes_nothing_reports_it_until_it_publishes_again(
    settings: Settings, connection: Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "NOT_READY_AFTER_SECONDS", 0.5)
    database = postgres_url.rpartition("/")[2]
    _append(connection, _events(3))
    connection.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on".encode())
    loop = Relay(settings, start(SERVICE, settings), stop := threading.Event())
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        # A slow start is also reported.
        wait_until(lambda: "read-only" in (loop.readiness.problem() or ""), 20, "the relay reports the problem")
        assert str(loop.readiness.problem()).startswith("has published nothing for ")
        connection.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only".encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outbox-relay'"
            " AND datname = current_database()"
        )
        _wait_empty(connection)
        wait_until(lambda: loop.readiness.problem() is None, 20, "the relay reports no problem")
    finally:
        stop.set()
        thread.join(20)
