"""Makes the spans of one batch: one a record, one an event, and one for the batch, which links to the others.

If the trace of a record is not sampled, the record gets no span, and its trace context is passed on unchanged.
"""

import time
from collections.abc import Sequence

from orderstream.domain.events import topic_of
from orderstream.kafka.envelope import Received, event_headers
from orderstream.kafka.publication import Publication
from orderstream.telemetry.tracing import Span, Tracer
from orderstream.worker.handler import Outgoing


class BatchTrace:
    """The spans of one batch, from its begin to `end`, which must be called once."""

    def __init__(self, tracer: Tracer, group: str, batch: Sequence[Received]) -> None:
        self._tracer = tracer
        self._group = group
        self._started_ns = time.time_ns()
        self._consumer_spans: dict[tuple[str, int, int], Span] = {}
        self._producer_spans: list[Span] = []
        for received in batch:
            record = received.record
            span = tracer.process(
                record.topic,
                received.event.type,
                received.order_id,
                record.trace_context(),
                group,
                record.partition,
                record.offset,
            )
            if span is not None:
                self._consumer_spans[record.topic, record.partition, record.offset] = span

    def publication(self, outgoing: Outgoing, value: bytes) -> Publication:
        """Return the record for an event. It carries the trace of the record that caused the event."""
        event = outgoing.event
        record = outgoing.cause.record
        context = record.trace_context()
        if parent := self._consumer_spans.get((record.topic, record.partition, record.offset)):
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

    def end(self, error: Exception | None) -> None:
        """End the consumer spans and record the span of the batch."""
        reason = None if error is None else str(error)
        for span in self._consumer_spans.values():
            span.end(reason)
        self._tracer.batch(f"{self._group} batch", self._started_ns, list(self._consumer_spans.values()))
