"""Puts everything that happened to an order on one time axis. All functions are pure.

The times come from several clocks: PostgreSQL's, Kafka's, and those of the machines that write spans and log lines.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from msgspec import Struct

from orderstream.console.orders.axis import GAP_SECONDS, Axis, Break, duration
from orderstream.console.orders.events import EventView
from orderstream.console.orders.log_lines import LogLine
from orderstream.console.orders.stored import ActionRow, DeadLetterRow, Stored
from orderstream.console.orders.waiting import WaitingFor
from orderstream.console.traces.store import StoredSpan

ENTRIES_MAX = 400
"""Entries that one page shows: the first and the last. Those between are counted."""

Kind = Literal["decision", "event", "span", "dead_letter", "log", "action", "pending"]
LANES: tuple[tuple[Kind, str], ...] = (
    ("decision", "Decisions"),
    ("event", "Events"),
    ("span", "Spans"),
    ("dead_letter", "Dead letters"),
    ("action", "Actions"),
    ("log", "Log lines"),
)


class Entry(Struct, frozen=True, kw_only=True):
    """One thing that happened at `at`. `seconds` is set if it took time. `anchor` is its place in the page."""

    at: datetime
    kind: Kind
    title: str
    detail: str = ""
    service: str = ""
    badges: Sequence[str] = ()
    is_error: bool = False
    seconds: float | None = None
    anchor: str = ""


class Step(Struct, frozen=True):
    """An entry in the list, the time since the entry before it in words, and whether that is a compressed gap."""

    entry: Entry
    since: str
    is_after_gap: bool


class Mark(Struct, frozen=True):
    """An entry in the picture. Units are those of the axis."""

    entry: Entry
    x: float
    width: float


class Timeline(Struct, frozen=True):
    """The list of entries and the picture of the same entries."""

    steps: Sequence[Step]
    lanes: Sequence[tuple[str, Sequence[Mark]]]
    breaks: Sequence[Break]
    length: str
    left_out: int
    """Entries in the middle that are not shown."""
    left_out_after: int
    """The number of shown entries before those that are not shown."""


def timeline(entries: Iterable[Entry]) -> Timeline:
    """Return the entries in the order of time, with compressed gaps."""
    ordered = sorted(entries, key=lambda entry: (entry.at, entry.kind != "decision"))
    left_out = max(0, len(ordered) - ENTRIES_MAX)
    half = ENTRIES_MAX // 2
    shown = [*ordered[:half], *ordered[-half:]] if left_out else ordered
    axis = Axis(at for entry in shown for at in (_ns(entry.at), _end_ns(entry)))
    return Timeline(
        steps=_steps(shown),
        lanes=_lanes(axis, shown),
        breaks=axis.breaks,
        length=duration(axis.seconds),
        left_out=left_out,
        left_out_after=half if left_out else 0,
    )


def _steps(entries: Sequence[Entry]) -> list[Step]:
    steps = []
    before: datetime | None = None
    for entry in entries:
        seconds = (entry.at - before).total_seconds() if before is not None else 0.0
        steps.append(Step(entry, duration(seconds), seconds > GAP_SECONDS))
        before = entry.at
    return steps


def _lanes(axis: Axis, entries: Sequence[Entry]) -> list[tuple[str, list[Mark]]]:
    """Return the lanes that have entries."""
    lanes = []
    for kind, name in LANES:
        marks = []
        for entry in entries:
            if entry.kind == kind or (kind == "decision" and entry.kind == "pending"):
                x = axis.x(_ns(entry.at))
                marks.append(Mark(entry, x, round(axis.x(_end_ns(entry)) - x, 2)))
        if marks:
            lanes.append((name, marks))
    return lanes


def decisions(stored: Stored) -> list[Entry]:
    """Return what the rows of the order say: each decision with its time."""
    order, payment, reservation = stored.order, stored.payment, stored.reservation
    found = [Entry(at=order.created_at, kind="decision", title="Order accepted", service="api-gateway")]
    if payment is not None:
        found += _of_payment(stored)
    if order.payment_at and (payment is None or order.payment_at != payment.decided_at):
        found.append(_decision(order.payment_at, f"Payment {order.payment}", "payment-worker"))
    if reservation is not None:
        skus = f" ({', '.join(reservation.skus[:5])})" if reservation.skus else ""
        title = f"Stock {reservation.state.lower()}"
        found.append(_decision(reservation.decided_at, title, "inventory-worker", (reservation.reason or "") + skus))
    if order.stock_at and (reservation is None or order.stock_at != reservation.decided_at):
        found.append(_decision(order.stock_at, f"Stock {order.stock}", "inventory-worker"))
    if order.nudged_at:
        badges = (_times(order.nudges, "nudge"),) if order.nudges else ()
        found.append(
            _decision(order.nudged_at, "The watchdog repeated an event of the order", "order-service", badges=badges)
        )
    if order.aborted_at:
        found.append(
            _decision(order.aborted_at, "Compensation began", "order-service", order.failure_reason or order.status)
        )
    if order.updated_at != order.created_at:
        detail = f"version {order.version}" + (f", {order.failure_reason}" if order.failure_reason else "")
        found.append(_decision(order.updated_at, f"Order {order.status}", "order-service", detail))
    return found


def _of_payment(stored: Stored) -> list[Entry]:
    payment = stored.payment
    assert payment is not None
    found = []
    badges = (_times(payment.attempts, "attempt"),) if payment.attempts > 1 or payment.state == "PENDING" else ()
    found.append(
        _decision(payment.decided_at, f"Payment {payment.state}", "payment-worker", payment.reason or "", badges=badges)
    )
    if payment.pending_since:
        found.append(
            _decision(
                payment.pending_since, "The customer or the bank has to decide about the payment", "payment-worker"
            )
        )
    if payment.closed_at and payment.closed_at != payment.decided_at:
        found.append(_decision(payment.closed_at, "Payment ended for the first time", "payment-worker"))
    return found


def _decision(at: datetime, title: str, service: str, detail: str = "", badges: Sequence[str] = ()) -> Entry:
    is_error = "FAILED" in title or title.endswith("failed")
    return Entry(at=at, kind="decision", title=title, detail=detail, service=service, badges=badges, is_error=is_error)


def events(found: Sequence[EventView]) -> list[Entry]:
    """Return events as entries. An event that is not published is at the time at which it happened."""
    entries = []
    for number, event in enumerate(found):
        at = event.recorded_at or event.occurred_at
        if at is None:
            continue
        badges = ["repeated"] if event.repeats else []
        badges += ["redriven"] if event.is_redriven else []
        badges += [] if event.is_published else ["not published yet"]
        place = f"partition {event.partition}, offset {event.offset}" if event.is_published else "in the outbox"
        entries.append(
            Entry(
                at=at,
                kind="event",
                title=event.type,
                detail=event.problem or " · ".join((*_said(event), place)),
                badges=badges,
                is_error=event.problem is not None,
                anchor=f"event-{number}",
            )
        )
    return entries


def _said(event: EventView) -> Sequence[str]:
    """Return the few members of an event that say what it changed."""
    data = event.data if isinstance(event.data, dict) else {}
    version = (f"version {data['version']}",) if "version" in data else ()
    return (*version, *(str(data[name]) for name in ("status", "reason", "failureReason") if data.get(name)))


def spans(found: Sequence[StoredSpan]) -> list[Entry]:
    """Return spans as entries with a length."""
    return [
        Entry(
            at=datetime.fromtimestamp(span.started_ns / 1e9, UTC),
            kind="span",
            title=span.name,
            detail=span.error or "",
            service=span.service,
            badges=[duration(max(0, span.ended_ns - span.started_ns) / 1e9)],
            is_error=span.error is not None,
            seconds=max(0, span.ended_ns - span.started_ns) / 1e9,
            anchor=f"span-{span.span_id}",
        )
        for span in found
    ]


def logs(found: Sequence[LogLine]) -> list[Entry]:
    """Return log lines as entries."""
    return [
        Entry(
            at=line.at,
            kind="log",
            title=line.event,
            detail=line.fields.get("detail") or line.fields.get("error") or "",
            service=line.service,
            badges=[line.level] if line.level not in ("info", "debug") else [],
            is_error=line.level in ("error", "critical"),
            anchor=f"log-{number}",
        )
        for number, line in enumerate(found)
    ]


def actions(found: Sequence[ActionRow]) -> list[Entry]:
    """Return what operators did as entries."""
    return [
        Entry(
            at=action.at,
            kind="action",
            title=action.kind,
            detail=f"{action.actor}: {action.reason}" if action.reason else action.actor,
            service="console",
            badges=[] if action.state == "done" else [action.state],
            is_error=action.state == "failed",
            anchor=f"action-{action.action_id}",
        )
        for action in found
    ]


def dead_letters(found: Sequence[DeadLetterRow]) -> list[Entry]:
    """Return dead letters as entries. One without a time of Kafka is left out."""
    return [
        Entry(
            at=letter.at,
            kind="dead_letter",
            title=letter.reason,
            detail=f"{letter.source_topic}: {letter.error}",
            service=letter.service,
            badges=[letter.state, *([_times(letter.tries, "redrive")] if letter.tries else [])],
            is_error=letter.state == "open",
            anchor="letters",
        )
        for letter in found
        if letter.at is not None
    ]


def pending(waiting: WaitingFor | None, now: datetime) -> list[Entry]:
    """Return what the order waits for, as the last entry."""
    if waiting is None:
        return []
    return [
        Entry(
            at=max(now, waiting.since),
            kind="pending",
            title=waiting.sentence,
            detail=waiting.hint or "",
            service=waiting.service,
            badges=["overdue"] if waiting.is_overdue else [],
            is_error=waiting.is_overdue,
        )
    ]


def _times(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _ns(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1) * 1_000


def _end_ns(entry: Entry) -> int:
    return _ns(entry.at) + int((entry.seconds or 0.0) * 1e9)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
