"""The loop that every worker runs: poll a batch, process it, and only then commit its offsets (P5).

If a dependency fails, the loop retries the batch. After a minute it rewinds its offsets and polls the batch again. The
handler's timers run in a second thread (timers.py).
"""

import itertools
import time
from threading import Event as StopSignal
from typing import Generic, TypeVar

from orderstream.kafka.envelope import Record
from orderstream.kafka.errors import TOPIC_MAY_BE_GONE, PublishError
from orderstream.kafka.publisher import Publisher
from orderstream.postgres.faults import is_fatal, is_transient, is_unknown
from orderstream.postgres.session import Session
from orderstream.process.readiness import Readiness
from orderstream.settings import Settings
from orderstream.telemetry import logs
from orderstream.telemetry.tracing import Tracer
from orderstream.worker.batch import BatchProcessor, may_succeed_later
from orderstream.worker.handler import Handler
from orderstream.worker.meters import WorkerMeters
from orderstream.worker.subscription import Subscription
from orderstream.worker.timers import TimerLoop

RETRY_SECONDS = 60
UNKNOWN_RETRIES = 3
"""Retries before an unknown error of Postgres is charged to a record, if other records of its batch succeed."""
BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MAX_SECONDS = 5.0

BATCH, POSTGRES = "finished no batch", "not reached PostgreSQL"
"""The activities that `readiness` reports."""

P = TypeVar("P")
log = logs.get()


class Runner(Generic[P]):
    """Runs a handler until `stop` is set. The consumer, the producer and one connection belong to the calling thread.

    An error that ends the loop or the timers sets `stop`, so that it ends both.
    """

    def __init__(self, handler: Handler[P], settings: Settings, tracer: Tracer, stop: StopSignal) -> None:
        self._stop = stop
        self._drain_seconds = settings.drain_timeout_seconds
        self._meters = WorkerMeters(handler.group, handler.topics)
        self._session = Session(settings.postgres_url, handler.group)
        self._beat = time.monotonic()
        self.readiness = Readiness()
        publisher = Publisher(settings, handler.group, stop)
        self._batches = BatchProcessor(handler, publisher, self._session, tracer, self._meters)
        self._subscription = Subscription(
            settings,
            handler.group,
            handler.topics,
            self._meters,
            self.readiness,
            room=handler.room,
            gathering=handler.gathering,
            on_assigned=self._forget_batch,
        )
        session = Session(settings.postgres_url, handler.group)
        self._timers = TimerLoop(
            handler.timers, handler.wake, session, self.readiness, stop, drain_seconds=self._drain_seconds
        )

    def _forget_batch(self) -> None:
        # After a new assignment, the batch that failed before may belong to another worker.
        self.readiness.succeeded(BATCH)

    @property
    def beat(self) -> float:
        """Monotonic time at which the last round began, of this loop or of the timers: the older of both."""
        return min(self._beat, self._timers.beat)

    @property
    def ready(self) -> bool:
        """Whether the loop has reached Postgres and has partitions."""
        return self._subscription.joined and self._session.ready

    def run(self) -> None:
        """Consume until `stop` is set, then finish the batch, commit its offsets and leave the group.

        Raises errors that no retry can help, such as a missing table, a wrong password, or too many failing records.
        """
        self._subscription.subscribe()
        try:
            while not self._stop.is_set():
                self._beat = time.monotonic()
                self._reach_postgres()
                self._subscription.measure_lag()
                records = self._subscription.poll()
                if records:
                    self._process(records)
        finally:
            self._stop.set()
            self._subscription.close()
            self._timers.join(self._drain_seconds)
            self._session.close()
        self._timers.raise_failure()

    def _process(self, records: list[Record]) -> None:
        """Process a batch and commit its offsets. Retries transient errors, and rewinds after RETRY_SECONDS."""
        started = time.monotonic()
        wait = BACKOFF_FIRST_SECONDS
        self._meters.consumed(record.topic for record in records)
        self.readiness.begin(BATCH)
        for retries in itertools.count():
            try:
                self._batches.process(records, isolates_unknown=retries >= UNKNOWN_RETRIES)
            except Exception as error:
                if is_fatal(error) or not may_succeed_later(error):
                    raise
                self._meters.retried(record.topic for record in records)
                self.readiness.failed(BATCH, error)
                log.warning("batch_retry", error=str(error)[:500], records=len(records))
                if time.monotonic() - started > RETRY_SECONDS:
                    if is_unknown(error):
                        raise
                    self._subscription.rewind(records)
                    return
                self._recover(error)
                if self._stop.wait(wait):
                    return
                wait = min(2 * wait, BACKOFF_MAX_SECONDS)
            else:
                self._subscription.commit(records)
                self.readiness.succeeded(BATCH)
                seconds = time.monotonic() - started
                self._meters.batch(len(records), seconds)
                self._subscription.polling_paused(seconds)
                return

    def _recover(self, error: Exception) -> None:
        if isinstance(error, PublishError) and error.code in TOPIC_MAY_BE_GONE:
            self._subscription.ensure_topics()

    def _reach_postgres(self) -> None:
        """Connect before the first record arrives, so that a ready worker can process it."""
        try:
            self._session.open()
        except Exception as error:
            if not is_transient(error):
                raise
            self.readiness.failed(POSTGRES, error)
            log.warning("postgres_unreachable", error=str(error)[:500])
        else:
            self.readiness.succeeded(POSTGRES)
            self._timers.start()
