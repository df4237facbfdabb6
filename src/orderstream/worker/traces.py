"""Makes the spans of one batch: those of each recorded record, of its transaction and of its events, and one of the
batch, which links to the records.

If the trace of a record is not sampled, the record gets no span, and its trace context is passed on unchanged.
"""

from collections.abc import Sequence

from orderstream.domain.events import topic_of
from orderstream.kafka.envelope import Received, Record, event_headers
from orderstream.kafka.publication import Publication
from orderstream.telemetry.tracing import NO_SPANS, Operation, RecordedSpan, Span, Spans, Tracer, reason_of
from orderstream.worker.handler import Outgoing


class BatchTrace:
    """The spans of one batch, from its begin to `end`, which must be called once."""

    def __init__(self, tracer: Tracer, group: str, batch: Sequence[Received]) -> None:
        self._tracer = tracer
        self._group = group
        self._records = len(batch)
        self._consumer_spans: dict[tuple[str, int, int], RecordedSpan] = {}
        self._producer_spans: list[Span] = []
        if tracer.is_on:
            self._begin(batch)

    def _begin(self, batch: Sequence[Received]) -> None:
        for received in batch:
            record = received.record
            if not _may_be_recorded(record):
                continue
            span = self._tracer.process(
                record.topic,
                received.event.type,
                received.order_id,
                record.trace_context(),
                self._group,
                record.partition,
                record.offset,
            )
            if span is not None:
                self._consumer_spans[_place(record)] = span

    def step(self, operation: Operation, part: Sequence[Received]) -> Spans:
        """Begin the spans of a step in which the records of `part` are worked on together."""
        if not self._consumer_spans:
            return NO_SPANS
        spans = [span for received in part if (span := self._consumer_spans.get(_place(received.record))) is not None]
        return self._tracer.shared(operation, [span.context for span in spans], len(part))

    def publication(self, outgoing: Outgoing, value: bytes) -> Publication:
        """Return the record for an event. It carries the trace of the record that caused the event."""
        event = outgoing.event
        record = outgoing.cause.record
        context = record.trace_context()
        if parent := self._consumer_spans.get(_place(record)):
            context = parent.context
        topic = topic_of(event.type)
        span = self._tracer.publish(topic, event.type, event.correlation_id, context)
        if span is not None:
            self._producer_spans.append(span)
            context = span.context
        return Publication(topic, event.correlation_id, value, event_headers(event.type, event.id, context))

    def published(self, error: str | None = None) -> None:
        """End the producer spans. `error` is set if Kafka did not acknowledge all events."""
        for span in self._producer_spans:
            span.end(error)
        self._producer_spans.clear()

    def gave_up(self, record: Record, reason: str) -> None:
        """End the span of a record that becomes a dead letter, with the reason."""
        if self._consumer_spans and (span := self._consumer_spans.get(_place(record))) is not None:
            span.set({"dead_letter.reason": reason})
            span.end(f"dead letter: {reason}")

    def end(self, error: Exception | None) -> None:
        """End the consumer spans and record the span of the batch."""
        if not self._consumer_spans:
            return
        reason = None if error is None else reason_of(error)
        spans = list(self._consumer_spans.values())
        for span in spans:
            span.end(reason)
        self._tracer.batch(f"{self._group} batch", self._records, spans)


def _may_be_recorded(record: Record) -> bool:
    """Say whether the gateway may have sampled the trace of a record. This is the only work for most records."""
    for name, value in record.headers:
        if name == "traceparent":
            return value is not None and not value.endswith(b"00")
    return False


def _place(record: Record) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset
