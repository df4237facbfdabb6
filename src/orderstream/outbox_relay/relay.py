"""Publishes what the outbox holds: a row is deleted in a transaction that commits only once Kafka has its event (P1).

Who dies in between publishes again later, which changes nothing (P7). Any number of relays share the work.
"""

import time
from collections import Counter as Tally
from threading import Event as StopSignal
from typing import Any

import psycopg
from confluent_kafka import KafkaException

from orderstream.domain.events import PAYLOADS, topic
from orderstream.kafka.client import TOPIC_MAY_BE_GONE, Publication, Publisher, PublishError
from orderstream.kafka.envelope import event_headers
from orderstream.kafka.topics import ensure_topics
from orderstream.outbox_relay.retention import Retention
from orderstream.postgres.connect import Connection, connect, is_fatal, is_transient
from orderstream.postgres.sql import load
from orderstream.settings import Settings
from orderstream.telemetry import logs, metrics
from orderstream.telemetry.tracing import Span, Tracer

SERVICE = "outbox-relay"
BATCH_ROWS = 500
BATCH_BYTES = 16 << 20
GATHER_FROM = 20
"""A batch this large says that there is a queue: then a larger one is worth waiting for, as it costs hardly more."""
GATHER_SECONDS = 0.03
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0
MEASURE_SECONDS = 5.0

SQL = load("orderstream.outbox_relay")
_TYPES = {topic(name): name for name in PAYLOADS}
log = logs.get()


class Relay:
    """The loop of the relay; one thread."""

    def __init__(self, settings: Settings, tracer: Tracer, stop: StopSignal) -> None:
        self._settings = settings
        self._tracer = tracer
        self._stop = stop
        self._publisher = Publisher(settings, SERVICE, stop)
        self._retention = Retention(settings.order_retention_days)
        self._connection: Connection | None = None
        self._measured = 0.0
        self.beat = time.monotonic()

    @property
    def ready(self) -> bool:
        """Whether Postgres was reached. Kafka need not be: its absence is what the outbox is for."""
        return self._connection is not None and not self._connection.broken

    def run(self) -> None:
        """Publish until the stop signal is set. Raises what no retry can help, such as a missing table."""
        wait = BACKOFF_FIRST_SECONDS
        while not self._stop.is_set():
            self.beat = time.monotonic()
            try:
                connection = self._connected()
                self._measure(connection)
                rows, full = self._publish_batch(connection)
                self._retention.run_if_due(connection)
                self._await_more(connection, rows, full=full)
                wait = BACKOFF_FIRST_SECONDS
            except (psycopg.Error, PublishError, KafkaException) as error:
                if is_fatal(error) or (isinstance(error, psycopg.Error) and not is_transient(error)):
                    raise
                self._recover(error)
                self._stop.wait(wait)
                wait = min(2 * wait, BACKOFF_MAX_SECONDS)
        if self._connection is not None:
            self._connection.close()

    def _publish_batch(self, connection: Connection) -> tuple[int, bool]:
        """Publish the oldest rows, and return how many and whether they were as many as one batch may hold.

        They are back in the outbox if anything fails.
        """
        with connection.transaction():
            rows = connection.execute(SQL["claim"], {"limit": BATCH_ROWS, "bytes": BATCH_BYTES}).fetchall()
            rows.sort(key=lambda row: row[0])
            spans: list[Span] = []
            try:
                self._publisher.publish([self._publication(row, spans) for row in rows])
            except PublishError as error:
                for span in spans:
                    span.end(str(error))
                raise
            for span in spans:
                span.end()
        for name, number in Tally(row[1] for row in rows).items():
            metrics.PRODUCED.labels(SERVICE, name).inc(number)
        return len(rows), len(rows) == BATCH_ROWS or sum(len(row[4]) for row in rows) >= BATCH_BYTES

    def _publication(self, row: tuple[Any, ...], spans: list[Span]) -> Publication:
        _, name, order_id, event_id, value, *carrier = row
        event_type = _TYPES.get(name, name)
        context = (carrier[0], carrier[1])
        span = self._tracer.publish(name, event_type, order_id, context)
        if span is not None:
            spans.append(span)
            context = span.carrier
        return Publication(name, order_id, value, event_headers(event_type, event_id, context))

    def _await_more(self, connection: Connection, rows: int, *, full: bool) -> None:
        """After a batch of so many rows wait until somebody says that there are more, or for the poll interval.

        After a large batch a moment is enough, after a full one there is no need to. A stop signal ends the wait too
        late by the poll interval at most. Every notice so far is taken, as the connection keeps them all; the next
        claim sees what they were about.
        """
        queued = full or rows >= GATHER_FROM
        if queued and not full:
            self._stop.wait(GATHER_SECONDS)
        for _ in connection.notifies(timeout=0 if queued else self._settings.relay_poll_seconds, stop_after=1):
            pass

    def _recover(self, error: Exception) -> None:
        log.warning("publish_retry", error=str(error)[:500])
        if isinstance(error, PublishError) and error.code in TOPIC_MAY_BE_GONE:
            try:
                if created := ensure_topics(self._settings):
                    log.warning("topics_created", topics=created)
            except KafkaException as failure:
                log.warning("ensure_topics_failed", detail=str(failure)[:300])
        if self._connection is not None and self._connection.broken:
            self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            connection = connect(self._settings.postgres_url, SERVICE)
            connection.execute(SQL["listen"])
            self._connection = connection
        return self._connection

    def _measure(self, connection: Connection) -> None:
        if time.monotonic() - self._measured < MEASURE_SECONDS:
            return
        self._measured = time.monotonic()
        rows, oldest_seconds = connection.execute(SQL["depth"]).fetchone() or (0, 0.0)
        metrics.OUTBOX_ROWS.set(rows)
        metrics.OUTBOX_OLDEST_SECONDS.set(oldest_seconds)
