"""The outbox: events of HTTP requests and timers. They commit with their cause. The relay publishes them (P1, P5)."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from orderstream.domain.events import Event, Payload, topic_of
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load
from orderstream.telemetry.tracing import NO_TRACE, TraceContext

CHANNEL = "orderstream_outbox"
"""NOTIFY channel that wakes the relay."""

SQL = load("orderstream.postgres")
_encode = msgspec.json.Encoder().encode


class OutboxRow(Struct, frozen=True):
    """An event to publish, with the trace context of the request or record that caused it."""

    event: Event[Payload]
    trace_context: TraceContext = NO_TRACE


def parameters(rows: Sequence[OutboxRow]) -> dict[str, list[object]]:
    """Return the parameters of `append_to_outbox`: arrays with one element for each row."""
    return {
        "topics": [topic_of(row.event.type) for row in rows],
        "order_ids": [row.event.correlation_id for row in rows],
        "event_ids": [row.event.id for row in rows],
        "values": [_encode(row.event).decode() for row in rows],
        "traceparents": [row.trace_context.traceparent for row in rows],
        "tracestates": [row.trace_context.tracestate for row in rows],
    }


def append(tx: Connection, rows: Sequence[OutboxRow]) -> None:
    """Add events to the outbox in the caller's transaction. Its commit wakes the relay."""
    if rows:
        tx.execute(SQL["append_to_outbox"], parameters(rows))
        tx.execute(SQL["wake_relay"])
