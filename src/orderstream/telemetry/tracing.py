"""Makes every span of OrderStream, by hand: one trace per order, from the HTTP request to the last worker.

The gateway decides once whether a trace is sampled. All other services follow the flag in `traceparent`, and record a
span only if its trace is sampled. If there is no collector, or the trace is not sampled, a request still has a trace
id. Nothing else is computed for it.
"""

import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, Protocol, Self


class TraceContext(NamedTuple):
    """`traceparent` and `tracestate` of the W3C, as HTTP headers, outbox rows and Kafka headers carry them."""

    traceparent: str | None
    tracestate: str | None


NO_TRACE = TraceContext(None, None)

Value = str | int | float | bool
Kind = Literal["SERVER", "CLIENT", "PRODUCER", "CONSUMER", "INTERNAL"]

TRACESTATE_MAX_CHARACTERS = 512
ERROR_MAX_CHARACTERS = 500
BUCKETS_MAX = 64
"""Span names that have a sampling limit of their own. Routes are few; all further names share one limit."""

UNTRACED_ROUTES = ("/livez", "/readyz", "/metrics")
"""Machines request these pages every few seconds. Their traces would hide the others."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_random_bits = random.Random().getrandbits  # noqa: S311 - an id, not a secret; seeded by the operating system


class ParentSpan(NamedTuple):
    """The span of the caller: a parsed TraceContext."""

    trace_id: str
    span_id: str
    sampled: bool
    tracestate: str | None


class Operation(NamedTuple):
    """A kind of call to another system, or of work: what all its spans have in common. It holds no values of a call."""

    name: str
    kind: Kind
    attributes: Mapping[str, Value]


class Span:
    """A span that is not recorded. It has only the trace context, which is returned to callers and passed on."""

    __slots__ = ("context", "trace_id")

    def __init__(self, trace_id: str, context: TraceContext) -> None:
        self.trace_id = trace_id
        self.context = context

    def set(self, attributes: Mapping[str, Value] | None = None, /, **named: Value) -> None:
        """Add attributes, from a mapping (for names with dots) or by name."""

    def link(self, context: TraceContext) -> None:
        """Add a link to the span of another trace. Ignores a malformed context."""

    def end(self, error: str | None = None) -> None:
        """Finish the span. With an `error`, mark it as failed. Later calls do nothing. Never blocks, never raises."""


class RecordedSpan(Span):
    """A span that is sent to the collector when it ends."""

    __slots__ = ("_sink", "attributes", "ended_ns", "error", "kind", "links", "name", "parent", "span_id", "started_ns")

    def __init__(self, sink: "Sink", name: str, kind: Kind, parent: ParentSpan | None, started_ns: int | None = None):
        trace_id = parent.trace_id if parent else f"{_random_bits(128):032x}"
        self.span_id = f"{_random_bits(64):016x}"
        tracestate = parent.tracestate if parent else None
        super().__init__(trace_id, TraceContext(f"00-{trace_id}-{self.span_id}-01", tracestate))
        self.name = name
        self.kind = kind
        self.parent = parent
        self.attributes: dict[str, Value] = {}
        self.links: tuple[ParentSpan, ...] = ()
        self.started_ns = started_ns or time.time_ns()
        self.ended_ns = 0
        self.error: str | None = None
        self._sink = sink

    def as_parent(self) -> ParentSpan:
        """Return this span as other spans name it."""
        return ParentSpan(self.trace_id, self.span_id, True, self.context.tracestate)

    def set(self, attributes: Mapping[str, Value] | None = None, /, **named: Value) -> None:
        """Add attributes. Attributes that are set after the end are lost."""
        self.attributes.update(attributes or {}, **named)

    def link(self, context: TraceContext) -> None:
        """Add a link to the span of another trace. Ignores a malformed context."""
        if (target := parse(context)) is not None:
            self.links += (target,)

    def end(self, error: str | None = None) -> None:
        """Finish the span and queue it for the collector."""
        if not self.ended_ns:
            self.ended_ns = time.time_ns()
            self.error = error and error[:ERROR_MAX_CHARACTERS]
            self._sink.record(self)


class _ServerSpan(RecordedSpan):
    """The span of a request. While it is open, the tracer counts it."""

    __slots__ = ("_tracer",)

    def __init__(self, tracer: "Tracer", sink: "Sink", name: str, parent: ParentSpan | None) -> None:
        super().__init__(sink, name, "SERVER", parent)
        self._tracer = tracer
        tracer.open_requests += 1

    def end(self, error: str | None = None) -> None:
        if not self.ended_ns:
            self._tracer.open_requests -= 1
        super().end(error)


class Spans:
    """The spans of one action that belongs to several traces. A context manager, which ends all of them."""

    __slots__ = ("_spans",)

    def __init__(self, spans: Sequence[RecordedSpan]) -> None:
        self._spans = spans

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """End the spans. An error that leaves the block marks them as failed."""
        if self._spans:
            reason = None if error is None else reason_of(error)
            for span in self._spans:
                span.end(reason)

    def rename(self, name: str) -> None:
        """Give the spans another name, which is the summary of their statements."""
        for span in self._spans:
            span.name = name
            span.attributes["db.query.summary"] = name


NO_SPANS = Spans(())
"""For an action that belongs to no recorded trace."""


class Sink(Protocol):
    """Sends finished spans to the collector in the background."""

    def record(self, span: RecordedSpan) -> None:
        """Queue a span. Drops it when the queue is full. Never blocks, never raises."""

    def shutdown(self) -> None:
        """Send the queued spans, for two seconds at most."""


class TokenBucket:
    """Allows `per_second` events a second, and as many at once after a pause."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._capacity = max(per_second, 1.0) if per_second else 0.0
        self._tokens = self._capacity
        self._clock = clock
        self._filled_at = clock()

    def take(self) -> bool:
        """Take one token if there is one."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Tracer:
    """Makes the spans of one process. Without a sink it makes none, and `server` still returns trace ids."""

    def __init__(
        self, sink: Sink | None, samples_per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sink = sink
        self._samples_per_second = samples_per_second
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}
        self.open_requests = 0
        """The number of recorded requests that have not ended. If it is 0, no batch has anything to record."""

    @property
    def is_on(self) -> bool:
        """Whether any span can be recorded."""
        return self._sink is not None

    def server(self, name: str, parent: TraceContext) -> Span:
        """Begin the span of one HTTP request: the root of its trace, or a child of the client's span.

        `name` is method and route, such as `POST /orders`; a name without a space has no route. Each name has a
        sampling limit of its own, so that polling clients do not use up the samples of new orders. If the client did
        not sample its own trace, this request is not sampled either.
        """
        caller = parse(parent)
        if self._sink is not None and (caller is None or caller.sampled) and self._sampled(name):
            span = _ServerSpan(self, self._sink, name, caller)
            method, space, route = name.partition(" ")
            span.attributes = {"http.request.method": method, "http.route": route} if space else {}
            return span
        trace_id = caller.trace_id if caller else f"{_random_bits(128):032x}"
        traceparent = f"00-{trace_id}-{_random_bits(64):016x}-00"
        return Span(trace_id, TraceContext(traceparent, caller.tracestate if caller else None))

    def process(  # noqa: PLR0917 - these parameters identify a record
        self, topic: str, event_type: str, order_id: str, parent: TraceContext, group: str, partition: int, offset: int
    ) -> RecordedSpan | None:
        """Begin the span of one record that `group` processes. Return None if its trace is not recorded."""
        span = self._child(f"process {topic}", "CONSUMER", parent)
        if span is not None:
            span.attributes = _messaging("process", topic, event_type, order_id) | {
                "messaging.consumer.group.name": group,
                "messaging.destination.partition.id": str(partition),
                "messaging.kafka.offset": offset,
            }
        return span

    def publish(self, topic: str, event_type: str, order_id: str, parent: TraceContext) -> RecordedSpan | None:
        """Begin the span of one event that is sent to Kafka. The event's headers get the context of this span."""
        span = self._child(f"send {topic}", "PRODUCER", parent)
        if span is not None:
            span.attributes = _messaging("send", topic, event_type, order_id)
        return span

    def client(self, name: str, parent: TraceContext) -> RecordedSpan | None:
        """Begin the span of one call to another system. Return None if its trace is not recorded."""
        return self._child(name, "CLIENT", parent)

    def shared(self, operation: Operation, parents: Iterable[TraceContext], size: int) -> Spans:
        """Begin a span of `operation` in the trace of each parent that is recorded. `size` is that of the batch.

        Check first whether there can be a recorded trace (`open_requests`, `is_on`): this method looks at each parent.
        """
        spans = [
            span for parent in parents if (span := self._child(operation.name, operation.kind, parent)) is not None
        ]
        for span in spans:
            span.attributes = {**operation.attributes, "batch.size": size}
        return Spans(spans) if spans else NO_SPANS

    def call(self, operation: Operation, parent: TraceContext) -> RecordedSpan | None:
        """Begin the span of an `operation` for one request. Return None if its trace is not recorded."""
        span = self._child(operation.name, operation.kind, parent)
        if span is not None:
            span.attributes = dict(operation.attributes)
        return span

    def waited(self, name: str, until: Span, since_ns: int, parent: TraceContext) -> None:
        """Record that the event of the span `until` waited from `since_ns` (Unix time) until this span began.

        The wait has the same parent and attributes. The clock of another machine may have set its begin, so it may seem
        to begin too late.
        """
        if self._sink is None or not isinstance(until, RecordedSpan):
            return
        span = RecordedSpan(self._sink, name, "INTERNAL", parse(parent), min(since_ns, until.started_ns))
        span.attributes = {name: value for name, value in until.attributes.items() if "messaging" not in name}
        span.ended_ns = until.started_ns
        self._sink.record(span)

    def batch(self, name: str, records: int, spans: Sequence[RecordedSpan]) -> None:
        """Record a batch of `records` that began with the first of `spans` and ends now, with a link to each of them.

        A batch belongs to many orders, so it is a trace of its own. If none of its records is recorded, the batch is
        not.
        """
        if self._sink is None or not spans:
            return
        span = RecordedSpan(self._sink, name, "INTERNAL", None, spans[0].started_ns)
        span.links = tuple(linked.as_parent() for linked in spans)
        span.attributes = {"messaging.system": "kafka", "messaging.batch.message_count": records}
        span.end()

    def shutdown(self) -> None:
        """Send the queued spans. Takes two seconds at most, even if the collector hangs."""
        if self._sink is not None:
            self._sink.shutdown()

    def _child(self, name: str, kind: Kind, parent: TraceContext) -> RecordedSpan | None:
        if self._sink is None or parent.traceparent is None or parent.traceparent.endswith("00"):
            return None
        caller = parse(parent)
        return RecordedSpan(self._sink, name, kind, caller) if caller and caller.sampled else None

    def _sampled(self, name: str) -> bool:
        if name.endswith(UNTRACED_ROUTES):
            return False
        key = name if name in self._buckets or len(self._buckets) < BUCKETS_MAX else ""
        if key not in self._buckets:
            self._buckets[key] = TokenBucket(self._samples_per_second, self._clock)
        return self._buckets[key].take()


NO_TRACER = Tracer(None, 0)
"""A tracer that records nothing."""


def reason_of(error: BaseException) -> str:
    """Return why an action failed, for its span.

    The text of an error of Postgres may hold values of a statement, so only its kind is shown.
    """
    sqlstate = getattr(error, "sqlstate", ...)
    if sqlstate is ...:
        return str(error) or type(error).__name__
    return f"{type(error).__name__} {sqlstate}" if sqlstate else type(error).__name__


def unix_ns(moment: datetime) -> int:
    """Return a time of Postgres as Unix nanoseconds."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1_000


def parse(context: TraceContext) -> ParentSpan | None:
    """Parse a trace context. Return None if `traceparent` is missing or malformed. Drops a malformed `tracestate`."""
    traceparent, tracestate = context
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    if tracestate and not (len(tracestate) <= TRACESTATE_MAX_CHARACTERS and _is_visible(tracestate)):
        tracestate = None
    return ParentSpan(trace_id, span_id, bool(int(flags, 16) & 1), tracestate or None)


def trace_id(context: TraceContext) -> str | None:
    """Return the trace id of a trace context."""
    parent = parse(context)
    return parent.trace_id if parent else None


def _is_visible(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _messaging(operation: str, topic: str, event_type: str, order_id: str) -> dict[str, Value]:
    return {
        "order.id": order_id,
        "event.type": event_type,
        "kafka.topic": topic,
        "messaging.system": "kafka",
        "messaging.destination.name": topic,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.kafka.message.key": order_id,
    }
