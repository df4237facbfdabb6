"""Publishes the events of the outbox. A row is deleted in a transaction that commits after Kafka has its event (P1).

If a relay dies in between, the event is published again later, which changes nothing (P7). Any number of relays share
the work.
"""

import time
from collections import Counter as Tally
from collections.abc import Iterable
from datetime import datetime
from threading import Event as StopSignal
from typing import Any

import psycopg
from confluent_kafka import KafkaException
from msgspec import Struct

from orderstream.dead_letters import refused_records
from orderstream.dead_letters.refused_records import Delivery
from orderstream.domain.events import PAYLOADS, TOPICS, topic_of
from orderstream.kafka.envelope import event_headers
from orderstream.kafka.errors import TOPIC_MAY_BE_GONE, PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import ensure_topics
from orderstream.outbox_relay.position import Position, Range
from orderstream.outbox_relay.retention import Retention
from orderstream.postgres.connect import Connection
from orderstream.postgres.faults import is_transient
from orderstream.postgres.session import Session
from orderstream.postgres.sql import load
from orderstream.process.gathering import OF_RECORDS
from orderstream.process.readiness import Readiness
from orderstream.settings import Settings
from orderstream.telemetry import logs, metrics
from orderstream.telemetry.tracing import Span, TraceContext, Tracer, unix_ns

SERVICE = "outbox-relay"
BATCH_ROWS = 1_000
BATCH_BYTES = 16 << 20
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0
MEASURE_SECONDS = 5.0
PUBLISH = "published nothing"

SQL = load("orderstream.outbox_relay")
_TYPES = {topic_of(event_type): event_type for event_type in PAYLOADS}
log = logs.get()


class _Row(Struct, frozen=True):
    """A row of the outbox: the columns of `claim`."""

    id: int
    topic: str
    order_id: str
    event_id: str
    value: str
    traceparent: str | None
    tracestate: str | None
    created_at: datetime


class Relay:
    """The loop of the relay, in one thread."""

    def __init__(self, settings: Settings, tracer: Tracer, stop: StopSignal) -> None:
        self._settings = settings
        self._tracer = tracer
        self._stop = stop
        self._publisher = Publisher(settings, SERVICE, stop)
        self._retention = Retention(settings.order_retention_days)
        self._session = Session(settings.postgres_url, SERVICE, self._begin)
        self._position = Position(time.monotonic, 0, 0)
        self._measured = 0.0
        refused_records.count_from_zero(SERVICE, TOPICS)
        self.beat = time.monotonic()
        self.readiness = Readiness()

    @property
    def ready(self) -> bool:
        """Whether Postgres was reached. Kafka does not count: the outbox is made for its absence."""
        return self._session.ready

    def run(self) -> None:
        """Publish until the stop signal is set. Raises the errors that a retry cannot help, such as a missing table."""
        wait = BACKOFF_FIRST_SECONDS
        while not self._stop.is_set():
            self.beat = time.monotonic()
            self.readiness.begin(PUBLISH)
            try:
                with self._session.use() as connection:
                    if self._position.is_blocked:
                        self._measure(connection)
                    rows, full = self._publish_next(connection)
                    self.readiness.succeeded(PUBLISH)
                    # Rows that are ready do not wait for the measurement.
                    self._measure(connection)
                self._retention.run_if_due(self._session)
                with self._session.use() as connection:
                    self._await_more(connection, rows, full=full or self._position.is_starting)
                wait = BACKOFF_FIRST_SECONDS
            except (psycopg.Error, PublishError, KafkaException) as error:
                if isinstance(error, psycopg.Error) and not is_transient(error):
                    raise
                self._position.put_back()
                self.readiness.failed(PUBLISH, error)
                self._recover(error)
                self._stop.wait(wait)
                wait = min(2 * wait, BACKOFF_MAX_SECONDS)
        self._session.close()

    def _publish_next(self, connection: Connection) -> tuple[int, bool]:
        """Publish the next rows and those of a sweep. Return their number, and whether more may be ready at once."""
        position = self._position
        part = position.next_claim()
        started = time.monotonic()
        ids, full = self._publish_batch(connection, part)
        position.claimed(part, ids, full=full, seconds=time.monotonic() - started)
        published, more = len(ids), False
        while not more and (swept := position.next_sweep()):
            started = time.monotonic()
            late, more = self._publish_batch(connection, swept)
            position.swept(swept, full=more, seconds=time.monotonic() - started)
            published += len(late)
        return published, full or more

    def _publish_batch(self, connection: Connection, part: Range) -> tuple[list[int], bool]:
        """Publish the oldest rows of a range. Return their ids, and whether the batch was full.

        The transaction that deletes the published rows moves a row that Kafka refuses for good to `refused_records`.
        Raises PublishError if a retry may help. The rows without an acknowledgement are then in the outbox again.
        """
        with connection.transaction():
            parameters = {"after": part.after, "upto": part.upto, "limit": BATCH_ROWS, "bytes": BATCH_BYTES}
            rows = [_Row(*columns) for columns in connection.execute(SQL["claim"], parameters)]
            if not rows:
                return [], False
            rows.sort(key=lambda row: row.id)
            spans: dict[int, Span] = {}
            records = [self._publication(index, row, spans) for index, row in enumerate(rows)]
            delivery = self._deliver(records, spans)
            if delivery.error:
                if len(delivery.unacknowledged) == len(rows):
                    raise delivery.error
                connection.execute(SQL["put_back"], _columns(rows[index] for index in sorted(delivery.unacknowledged)))
            refused = [(records[index], reason) for index, reason in delivery.refused.items()]
            refused_records.keep(connection, SERVICE, refused)
        left = delivery.refused.keys() | delivery.unacknowledged
        for topic, number in Tally(row.topic for index, row in enumerate(rows) if index not in left).items():
            metrics.PRODUCED.labels(SERVICE, refused_records.topic_label(topic)).inc(number)
        if delivery.error:
            raise delivery.error
        full = len(rows) == BATCH_ROWS or sum(len(row.value) for row in rows) >= BATCH_BYTES
        return [row.id for row in rows], full

    def _deliver(self, records: list[Publication], spans: dict[int, Span]) -> Delivery:
        try:
            delivery = refused_records.deliver(self._publisher, records)
        except PublishError as error:
            for span in spans.values():
                span.end(str(error))
            raise
        for index, span in spans.items():
            unacknowledged = str(delivery.error) if index in delivery.unacknowledged else None
            span.end(delivery.refused.get(index, unacknowledged))
        return delivery

    def _publication(self, index: int, row: _Row, spans: dict[int, Span]) -> Publication:
        event_type = _TYPES.get(row.topic, row.topic)
        context = TraceContext(row.traceparent, row.tracestate)
        span = self._tracer.publish(row.topic, event_type, row.order_id, context)
        if span is not None:
            self._tracer.waited("wait in outbox", span, unix_ns(row.created_at), context)
            spans[index] = span
            context = span.context
        return Publication(row.topic, row.order_id, row.value, event_headers(event_type, row.event_id, context))

    def _await_more(self, connection: Connection, rows: int, *, full: bool) -> None:
        """Wait for a notice that there are more rows, at most for the poll interval.

        After a large batch, only gather more rows (process/gathering.py). After a full batch, do not wait. A stop
        signal ends the wait after the poll interval at the latest. The connection keeps every notice, so this method
        reads all of them. The next claim sees their rows.
        """
        if not full and (gathering_seconds := OF_RECORDS.seconds(rows)):
            self._stop.wait(gathering_seconds)
        for _ in connection.notifies(timeout=0 if full else self._settings.relay_poll_seconds, stop_after=1):
            pass

    def _recover(self, error: Exception) -> None:
        log.warning("publish_retry", error=str(error)[:500])
        if isinstance(error, PublishError) and error.code in TOPIC_MAY_BE_GONE:
            try:
                if created := ensure_topics(self._settings):
                    log.warning("topics_created", topics=created)
            except KafkaException as failure:
                log.warning("ensure_topics_failed", detail=str(failure)[:300])

    def _begin(self, connection: Connection) -> None:
        """Set up a new session."""
        connection.execute(SQL["listen"])
        self._find_position(connection)

    def _find_position(self, connection: Connection) -> None:
        """Begin at the floor that relays have stored, or at 0 if the ids started again, as after a TRUNCATE."""
        row = connection.execute(SQL["find_position"]).fetchone()
        assert row is not None
        floor, last_id = row
        if floor > last_id:
            connection.execute(SQL["reset_floor"])
            floor = 0
        self._position = Position(time.monotonic, floor, last_id)

    def _measure(self, connection: Connection) -> None:
        """Show how many rows wait, and store the floor where other relays and the gateways begin."""
        is_walking = self._position.is_starting and not self._position.is_blocked
        if is_walking or time.monotonic() - self._measured < MEASURE_SECONDS:
            return
        self._measured = time.monotonic()
        low = self._position.low
        row = connection.execute(SQL["depth"], {"low": low}).fetchone()
        assert row is not None
        rows, oldest_seconds, floor, last_id = row
        metrics.OUTBOX_ROWS.set(rows)
        metrics.OUTBOX_OLDEST_SECONDS.set(oldest_seconds)
        self._measure_refused(connection)
        if last_id < low:
            self._find_position(connection)
        elif floor < low:
            connection.execute(SQL["raise_floor"], {"low": low})
        else:
            self._position.raise_to(floor)

    def _measure_refused(self, connection: Connection) -> None:
        hours = self._settings.dead_letter_retention_hours
        metrics.REFUSED_ROWS.set(refused_records.measure(connection, hours))


def _columns(rows: Iterable[_Row]) -> dict[str, list[Any]]:
    """Return the parameters of `put_back`: one array for each column, named after it in the plural."""
    found = list(rows)
    return {f"{column}s": [getattr(row, column) for row in found] for column in _Row.__struct_fields__}
