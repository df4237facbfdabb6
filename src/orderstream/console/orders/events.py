"""The events of one order, as Kafka and the outbox hold them. Every text in them may be hostile: it is cut here."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from orderstream.console.orders.record_search import FoundRecord
from orderstream.console.orders.stored import OutboxEvent
from orderstream.dead_letters.letter import JOB_HEADER
from orderstream.domain.events import TOPICS
from orderstream.kafka.envelope import Undecodable, decode
from orderstream.telemetry.tracing import TraceContext, parse

DATA_MAX_BYTES = 16 << 10
"""Bytes of an event that are returned. Of a larger event, the text is cut, and `cutFrom` has its size."""
HEADERS_MAX = 30
HEADER_MAX_CHARACTERS = 500
TYPE_MAX_CHARACTERS = 100


class Header(Struct, frozen=True):
    """A header of a record. Bytes that are not UTF-8 are shown as escapes."""

    name: str
    value: str | None


class Position(Struct, frozen=True):
    """The place of a record in its topic."""

    partition: int
    offset: int


class EventView(Struct, frozen=True, kw_only=True, rename="camel"):
    """An event of the order. An event that waits in the outbox has no partition and no offset yet.

    `data` is the payload. If the record cannot be read, or is too large, `data` is null, `text` has its beginning, and
    `problem` says why. `repeats` is the place of the same event before this one.
    """

    topic: str
    partition: int | None
    offset: int | None
    type: str
    event_id: str | None
    occurred_at: datetime | None
    recorded_at: datetime | None
    is_published: bool = True
    data: Any = None
    text: str | None = None
    problem: str | None = None
    cut_from: int | None = None
    headers: Sequence[Header] = ()
    headers_left_out: int = 0
    trace_id: str | None = None
    span_id: str | None = None
    repeats: Position | None = None
    is_redriven: bool = False


def of_record(record: FoundRecord, order_id: str) -> EventView:
    """Return the event of a record that was found in Kafka."""
    shown = [Header(_cut(name), None if value is None else _cut(_text(value))) for name, value in record.headers]
    by_name = {header.name: header.value for header in shown}
    body = _body(record.topic, order_id, record.value)
    parent = parse(TraceContext(by_name.get("traceparent"), None))
    return EventView(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        recorded_at=record.recorded_at,
        headers=shown[:HEADERS_MAX],
        headers_left_out=max(0, len(shown) - HEADERS_MAX),
        trace_id=parent.trace_id if parent else None,
        span_id=parent.span_id if parent else None,
        is_redriven=JOB_HEADER in by_name,
        **(body | {"event_id": body["event_id"] or by_name.get("event-id")}),
    )


def of_outbox(row: OutboxEvent, order_id: str) -> EventView:
    """Return an event that is not published yet."""
    parent = parse(TraceContext(row.traceparent, None))
    return EventView(
        topic=row.topic,
        partition=None,
        offset=None,
        recorded_at=None,
        is_published=False,
        trace_id=parent.trace_id if parent else None,
        span_id=parent.span_id if parent else None,
        **(_body(row.topic, order_id, row.value.encode()) | {"event_id": row.event_id}),
    )


def in_order(events: Sequence[EventView]) -> list[EventView]:
    """Return the events by time, and mark those that repeat an earlier one. Unpublished events come last."""
    ordered = sorted(events, key=_place)
    first: dict[tuple[str, str], Position] = {}
    marked = []
    for event in ordered:
        earlier = first.get((event.topic, event.event_id or ""))
        if event.event_id and earlier is not None:
            marked.append(replace(event, repeats=earlier))
            continue
        if event.event_id and event.partition is not None and event.offset is not None:
            first[event.topic, event.event_id] = Position(event.partition, event.offset)
        marked.append(event)
    return marked


def _place(event: EventView) -> tuple[bool, float, int, int]:
    at = event.recorded_at.timestamp() if event.recorded_at else 0.0
    known = TOPICS.index(event.topic) if event.topic in TOPICS else len(TOPICS)
    return not event.is_published, at, known, event.offset or 0


def _body(topic: str, order_id: str, value: bytes | None) -> dict[str, Any]:
    """Return the members of an event that its value states. The decoder of the workers says what is wrong with it."""
    size = len(value or b"")
    members: dict[str, Any] = {"type": _type_of(topic), "event_id": None, "occurred_at": None}
    try:
        event = decode(topic, order_id.encode(), value)
    except Undecodable as error:
        members["problem"] = _cut(str(error))
    else:
        members |= {"type": event.type, "event_id": event.id, "occurred_at": event.occurred_at}
        if size <= DATA_MAX_BYTES:
            return members | {"data": msgspec.to_builtins(event.payload)}
    shown = _text((value or b"")[:DATA_MAX_BYTES])
    return members | {"text": shown, "cut_from": size if size > DATA_MAX_BYTES else None}


def _type_of(topic: str) -> str:
    return (topic.rpartition(".v")[0] or topic)[:TYPE_MAX_CHARACTERS]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _cut(text: str) -> str:
    more = len(text) - HEADER_MAX_CHARACTERS
    return text if more <= 0 else f"{text[:HEADER_MAX_CHARACTERS]}… {more:,} more characters"
