"""Reads traces for the API and the pages: one trace as a whole, and the traces of one order."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from orderstream.console.traces.store import Figures, Link, StoredSpan, TraceStore, Value
from orderstream.http_server.problems import Problem

_TRACE_ID = re.compile("[0-9a-f]{32}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SpanView(Struct, frozen=True, rename="camel"):
    """A span. `parentId` is empty for a root. `error` is null if the span did not fail.

    `cut` counts the attributes, links and values that were dropped or shortened because the span was too large.
    """

    span_id: str
    parent_id: str
    service: str
    name: str
    kind: str
    started_at: datetime
    duration_ns: int
    attributes: dict[str, Value]
    error: str | None
    links: Sequence[dict[str, str]]
    cut: int


class TraceSummary(Struct, frozen=True, rename="camel"):
    """A trace in a list. `name` is that of its earliest root, and of its earliest span if the root is missing."""

    trace_id: str
    name: str
    started_at: datetime
    duration_ns: int
    spans: int
    services: Sequence[str]
    has_errors: bool


class TraceView(Struct, frozen=True, rename="camel"):
    """A whole trace. `linkedBy` are the traces that link to it, for example that of a cancel."""

    trace: TraceSummary
    spans: Sequence[SpanView]
    spans_dropped: int
    order_ids: Sequence[str]
    linked_by: Sequence[TraceSummary]


class TracesOfOrder(Struct, frozen=True, rename="camel"):
    """The traces that have a span of one order, the oldest first. `placedBy` is that of the request that placed it."""

    placed_by: str | None
    traces: Sequence[TraceSummary]
    store: Figures


def moment(unix_ns: int) -> datetime:
    """Return Unix nanoseconds as a time."""
    return _EPOCH + timedelta(microseconds=unix_ns // 1_000)


def is_trace_id(text: str) -> bool:
    """Return whether a text is a trace id in lower case."""
    return _TRACE_ID.fullmatch(text) is not None


def address_elsewhere(template: str | None, trace_id: str) -> str | None:
    """Return the address of a trace in another program, by TRACE_UI_URL. None without a usable setting."""
    if not template or not template.startswith(("http://", "https://")) or not is_trace_id(trace_id):
        return None
    return template.replace("{traceId}", trace_id)


def trace(store: TraceStore, trace_id: str) -> TraceView:
    """Return a trace. Raises Problem 404 if the store does not have it."""
    spans = store.spans_of(trace_id)
    if not spans:
        detail = "The console has no span of this trace. It keeps recent, sampled traces only."
        raise Problem(404, "not-found", "Not found", detail)
    found = (summary(spans_of) for other in store.linking_to(trace_id) if (spans_of := store.spans_of(other)))
    return TraceView(
        summary(spans),
        [view(span) for span in spans],
        store.dropped_of(trace_id),
        list(dict.fromkeys(span.order_id for span in spans if span.order_id)),
        list(found),
    )


def traces_of_order(store: TraceStore, order_id: str) -> TracesOfOrder:
    """Return the traces of an order. An order without a trace in the store has an empty list."""
    found = (store.spans_of(trace_id) for trace_id in store.traces_of_order(order_id))
    return TracesOfOrder(store.trace_of_order(order_id), [summary(spans) for spans in found if spans], store.figures())


def summary(spans: Sequence[StoredSpan]) -> TraceSummary:
    """Return the summary of a trace. `spans` are its spans, the earliest first, at least one."""
    ids = {span.span_id for span in spans}
    root = next((span for span in spans if span.parent_id not in ids), spans[0])
    started = min(span.started_ns for span in spans)
    return TraceSummary(
        spans[0].trace_id,
        root.name,
        moment(started),
        max(span.ended_ns for span in spans) - started,
        len(spans),
        sorted({span.service for span in spans}),
        any(span.error is not None for span in spans),
    )


def view(span: StoredSpan) -> SpanView:
    """Return a span for the API."""
    return SpanView(
        span.span_id,
        span.parent_id,
        span.service,
        span.name,
        span.kind,
        moment(span.started_ns),
        span.ended_ns - span.started_ns,
        span.attributes,
        span.error,
        [_link(link) for link in span.links],
        span.cut,
    )


def _link(link: Link) -> dict[str, str]:
    return {"traceId": link.trace_id, "spanId": link.span_id}
