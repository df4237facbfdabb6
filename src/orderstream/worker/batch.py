"""Processes one batch of records: decide in one transaction, publish the events, and publish the dead letters.

A decision is durable before its events are published (P5). If a record makes the batch fail, the batch is halved until
that record is found, and the record becomes a dead letter (P9).
"""

import time
from collections.abc import Collection, Sequence
from typing import Generic, TypeVar, assert_never

from msgspec import Struct

from orderstream.dead_letters import refused_records
from orderstream.dead_letters.letter import DeadLetter, publication
from orderstream.domain.events import topic_of
from orderstream.kafka.envelope import Reason, Received, Record, Undecodable, decode, encode
from orderstream.kafka.errors import KafkaRefusedError, PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import dead_letter_topic
from orderstream.postgres.faults import Fault, fault_of, is_fatal, is_transient, is_unknown, names_unknown_order
from orderstream.postgres.session import Session
from orderstream.telemetry import logs
from orderstream.telemetry.tracing import Tracer, trace_id
from orderstream.worker.failure_limit import MIN_FAILURES, FailureLimit, UnknownOrders
from orderstream.worker.handler import DECIDE, BatchResult, Handler, RepeatBatchError
from orderstream.worker.meters import WorkerMeters
from orderstream.worker.recent_dead_letters import RecentDeadLetters
from orderstream.worker.traces import BatchTrace

LETTER_FAILURES_MAX = 3
"""Failed publishes of dead letters in a row, after which Postgres keeps them, so that good records do not wait."""

P = TypeVar("P")
log = logs.get()


class _Batch(Struct):
    """The records of one poll, and the dead letters that result from them."""

    received: list[Received]
    letters: list[DeadLetter]
    """Bad records."""
    failures: list[DeadLetter]
    """Records that failed in the handler for another reason."""
    isolates_unknown: bool
    """Whether an unknown error of Postgres is charged to a record instead of being raised."""
    unexplained: int = 0
    """Records that failed with an unknown error and had no dead letter before."""


class BatchProcessor(Generic[P]):
    """Processes batches with a handler, in one thread."""

    def __init__(
        self,
        handler: Handler[P],
        publisher: Publisher,
        session: Session,
        tracer: Tracer,
        meters: WorkerMeters,
    ) -> None:
        self._handler = handler
        self._publisher = publisher
        self._session = session
        self._transaction = session.operation(DECIDE)
        self._tracer = tracer
        self._meters = meters
        self._limit = FailureLimit(time.monotonic)
        self._unknown_orders = UnknownOrders(time.monotonic)
        self._recent = RecentDeadLetters(time.monotonic)
        self._letter_failures = 0
        written = [*map(topic_of, handler.emits), dead_letter_topic(handler.group)]
        refused_records.count_from_zero(handler.group, written)

    def process(self, records: Sequence[Record], *, isolates_unknown: bool) -> None:
        """Decide all records and publish the events and the dead letters.

        With `isolates_unknown`, an unknown error of Postgres is charged to the record that causes it, if other records
        of the batch succeed. Raises an error for which `may_succeed_later` is true if a retry may help. Raises
        TooManyFailuresError and other errors if no retry helps.
        """
        batch = _decode(records, isolates_unknown=isolates_unknown)
        trace = BatchTrace(self._tracer, self._handler.group, batch.received)
        try:
            if batch.received:
                self._process_part(batch.received, trace, batch, attempts=1)
            new = self._recent.new(batch.failures)
            # A redrive repeats records that are known to fail. It must not stop the worker.
            failed = sum(not letter.origins for letter in new)
            self._limit.check(len(batch.received), failed)
            self._send_dead_letters(batch.letters + new)
            self._limit.note(len(batch.received), failed)
            self._recent.remember(new)
            self._unknown_orders.note(len(batch.received), batch.letters)
        except Exception as error:
            trace.end(error)
            raise
        if again := len(batch.failures) - len(new):
            letter = batch.failures[-1]
            log.warning("dead_letter_again", records=again, detail=letter.detail[:500], **_order_of(letter.record))
        for letter in batch.letters + batch.failures:
            trace.gave_up(letter.record, letter.reason)
        trace.end(None)
        self._meters.decided(received.record.topic for received in batch.received)

    def _process_part(self, part: Sequence[Received], trace: BatchTrace, batch: _Batch, attempts: int) -> None:
        """Decide and publish `part`. If a record in it is at fault, halve it until that record is alone."""
        try:
            result = self._decide(part, trace)
            self._publish(result, trace)
        except KafkaRefusedError:
            raise
        except Exception as error:
            isolated = is_unknown(error) and batch.isolates_unknown
            if is_fatal(error) or (may_succeed_later(error) and not isolated):
                raise
            if len(part) == 1:
                self._give_up(part[0], error, batch, attempts)
                if batch.unexplained > min(MIN_FAILURES, len(batch.received) - 1):
                    raise
                return
            middle = len(part) // 2
            for half in (part[:middle], part[middle:]):
                self._process_part(half, trace, batch, attempts + 1)
        else:
            batch.letters += [
                DeadLetter(rejected.received.record, rejected.reason, rejected.detail, attempts)
                for rejected in result.reject
            ]

    def _give_up(self, received: Received, error: Exception, batch: _Batch, attempts: int) -> None:
        """Add the dead letter of a record that is at fault."""
        reason = _reason(error)
        letter = DeadLetter(received.record, reason, f"{type(error).__name__}: {error}", attempts)
        if reason == "FAILED":
            batch.failures.append(letter)
            batch.unexplained += is_unknown(error) and len(self._recent.new([letter]))
        else:
            batch.letters.append(letter)

    def _decide(self, part: Sequence[Received], trace: BatchTrace) -> BatchResult:
        with self._session.use() as connection:
            prepared = self._handler.prepare(connection, part)
            with trace.step(self._transaction, part) as spans, connection.transaction():
                result = self._handler.decide(connection, part, prepared)
                spans.rename(result.summary)
        if result.cleanup is None:
            result.after_commit()
            return result
        with trace.step(result.cleanup, part):
            result.after_commit()
        return result

    def _publish(self, result: BatchResult, trace: BatchTrace) -> None:
        """Publish the events of a batch. Postgres keeps the events that Kafka permanently refuses.

        Raises PublishError if a retry may help.
        """
        if not result.emit:
            return
        records = [trace.publication(outgoing, encode(outgoing.event)) for outgoing in result.emit]
        refused: Collection[int] = ()
        try:
            self._publisher.publish(records)
        except PublishError as error:
            trace.published(str(error))
            if not error.all_refused:
                raise
            refused = error.refused
            self._keep_refused([(records[index], reason) for index, reason in refused.items()])
        except Exception as error:
            trace.published(str(error))
            raise
        trace.published()
        self._meters.produced(record.topic for index, record in enumerate(records) if index not in refused)

    def _keep_refused(self, refused: list[tuple[Publication, str]]) -> None:
        if refused:
            with self._session.use() as connection:
                refused_records.keep(connection, self._handler.group, refused)

    def _send_dead_letters(self, letters: list[DeadLetter]) -> None:
        """Publish dead letters. Postgres keeps the letters that Kafka permanently refuses.

        Raises PublishError if a retry may help. After LETTER_FAILURES_MAX such failures in a row, Postgres keeps the
        unacknowledged letters too.
        """
        if not letters:
            return
        records = [publication(self._handler.group, letter) for letter in letters]
        delivery = refused_records.deliver(self._publisher, records)
        if delivery.error:
            self._letter_failures += 1
            if self._letter_failures < LETTER_FAILURES_MAX:
                raise delivery.error
        reasons = dict.fromkeys(delivery.unacknowledged, str(delivery.error)) | delivery.refused
        self._keep_refused([(records[index], reason) for index, reason in reasons.items()])
        self._letter_failures = 0
        for letter in letters:
            record = letter.record
            log.error(
                "dead_letter",
                reason=letter.reason,
                detail=letter.detail[:500],
                record=f"{record.topic}/{record.partition}@{record.offset}",
                **_order_of(record),
            )
        self._meters.dead_lettered(letter.record.topic for letter in letters)


def may_succeed_later(error: Exception) -> bool:
    """Say whether a retry of the same batch may succeed."""
    return isinstance(error, RepeatBatchError | PublishError) or is_transient(error)


def _order_of(record: Record) -> dict[str, str | None]:
    """Return the order and the trace of a record, for a log line."""
    order_id = (record.key or b"").decode("utf-8", "replace")[:100]
    return {"order_id": order_id, "trace_id": trace_id(record.trace_context())}


def _decode(records: Sequence[Record], *, isolates_unknown: bool) -> _Batch:
    batch = _Batch([], [], [], isolates_unknown)
    for record in records:
        try:
            batch.received.append(Received(record, decode(record.topic, record.key, record.value)))
        except Undecodable as error:
            batch.letters.append(DeadLetter(record, error.reason, error.detail, 0))
    return batch


def _reason(error: Exception) -> Reason:
    """Return why a record that failed alone is a dead letter. FAILED counts against the failure limit."""
    if names_unknown_order(error):
        return "UNKNOWN_ORDER"
    fault = fault_of(error)
    match fault:
        case Fault.VALUE:
            return "BAD_PAYLOAD"
        case Fault.ROW | Fault.SESSION | Fault.UNKNOWN | Fault.FATAL | None:
            return "FAILED"
        case _:
            assert_never(fault)
