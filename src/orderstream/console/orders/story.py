"""The whole story of one order: what is stored, what it waits for, its events, spans, log lines and actions.

PostgreSQL answers in milliseconds, so that a page about the order is fast. Kafka and the log files come after it.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict

from orderstream.console.orders import events, log_lines, timeline
from orderstream.console.orders.events import EventView
from orderstream.console.orders.log_lines import NO_LOGS, LogLine, LogSearch
from orderstream.console.orders.record_search import Found, RecordSearch, TopicSearch, windows_around
from orderstream.console.orders.stored import ActionRow, DeadLetterRow, PaymentRow, Stored, read_stored
from orderstream.console.orders.timeline import Timeline
from orderstream.console.orders.waiting import Live, Rules, WaitingFor, waiting_for
from orderstream.console.orders.waterfall import Waterfall, waterfall
from orderstream.console.stores import Stores
from orderstream.console.traces.reader import SpanView, view
from orderstream.console.traces.store import StoredSpan, TraceStore
from orderstream.domain import saga
from orderstream.domain.events import topic_of

TRACES_MAX = 10
"""Traces of one order that are returned: its own, and the oldest others, such as that of a cancel."""


class OrderLine(Struct, frozen=True):
    """One line of an order. `price` is exact."""

    sku: str
    qty: int
    price: Decimal


class OrderPart(Struct, frozen=True, kw_only=True, rename="camel"):
    """The row of the order. `payment` and `stock` are the facts that the status is derived from."""

    order_id: str
    user_id: str
    amount: Decimal
    currency: str
    status: str
    failure_reason: str | None
    version: int
    created_at: datetime
    updated_at: datetime
    payment: str
    payment_at: datetime | None
    stock: str
    stock_at: datetime | None
    aborted_at: datetime | None
    is_compensated: bool
    nudges: int
    nudged_at: datetime | None
    next_check_at: datetime | None
    """When the watchdog looks at the order the next time. None if it does not look any more."""
    idempotency_key: str | None
    trace_id: str | None
    lines: Sequence[OrderLine]


class PaymentPart(Struct, frozen=True, kw_only=True, rename="camel"):
    """The payment of the order. The provider knows it by `providerReference`, which is the order id."""

    state: str
    amount: Decimal | None
    reason: str | None
    attempts: int
    next_attempt_at: datetime | None
    provider_reference: str
    pending_since: datetime | None
    decided_at: datetime
    closed_at: datetime | None


class ReservationPart(Struct, frozen=True, kw_only=True, rename="camel"):
    """The stock of the order. `lines` are SKU and quantity: held, or given back. `skus` were unknown or short."""

    state: str
    lines: Mapping[str, int]
    lines_left_out: int
    reason: str | None
    skus: Sequence[str]
    decided_at: datetime


class SpanPart(SpanView, frozen=True, rename="camel"):
    """A span of one of the order's traces."""

    trace_id: str


class StoryLimits(Struct, frozen=True, kw_only=True, rename="camel"):
    """What the story may have left out. `kafka` says why Kafka could not be searched. `sentences` say all in words."""

    kafka: str | None
    topics: Sequence[TopicSearch]
    has_log_files: bool
    """Whether this console can read the log files: only that of a local stack can."""
    log_lines_left_out: int
    log_files_cut: Sequence[str]
    spans_dropped: int
    sentences: Sequence[str]


class OrderStory(Struct, frozen=True, kw_only=True, rename="camel"):
    """The whole story of one order, at the database's time `asOf`."""

    as_of: datetime
    order: OrderPart
    payment: PaymentPart | None
    reservation: ReservationPart | None
    waiting_for: WaitingFor | None
    events: Sequence[EventView]
    spans: Sequence[SpanPart]
    dead_letters: Sequence[DeadLetterRow]
    logs: Sequence[LogLine]
    actions: Sequence[ActionRow]
    limits: StoryLimits


class Trace(Struct, frozen=True):
    """One trace of the order. `title` is the name of its first span."""

    trace_id: str
    title: str
    spans: Sequence[StoredSpan]

    @property
    def waterfall(self) -> Waterfall | None:
        """The spans as rows."""
        return waterfall(self.spans)


class Sources(Struct, frozen=True):
    """Where the parts of the story come from. Without `traces` or `logs`, the story has none.

    `live` returns what the console has just measured about an order.
    """

    stores: Stores
    rules: Rules
    search: RecordSearch
    traces: TraceStore | None = None
    logs: Path | None = None
    live: Callable[[str], Live] = lambda _order_id: Live()


class Now(Struct, frozen=True):
    """The fast half of the story: what PostgreSQL stores, and what the order waits for."""

    stored: Stored
    waiting_for: WaitingFor | None


class Happened(Struct, frozen=True):
    """The slow half of the story: events, traces and log lines."""

    found: Found
    events: Sequence[EventView]
    traces: Sequence[Trace]
    spans_dropped: int
    logs: LogSearch


def order_now(sources: Sources, order_id: str) -> Now | None:
    """Return what is stored about an order and what it waits for. Return None if there is no such order.

    Raises psycopg.Error.
    """
    with sources.stores.reading() as connection:
        stored = read_stored(connection, order_id)
    return None if stored is None else Now(stored, waiting_for(stored, sources.rules, sources.live(order_id)))


def what_happened(sources: Sources, stored: Stored) -> Happened:
    """Return the events, the traces and the log lines of an order. Raises nothing if Kafka does not answer."""
    order = stored.order
    windows = windows_around(known_times(stored))
    found = sources.search.around(order.order_id.encode(), windows, expected_topics(stored))
    traces = _traces(sources.traces, stored)
    words = {order.order_id, *(trace.trace_id for trace in traces), *([order.trace_id] if order.trace_id else ())}
    return Happened(
        found,
        events.in_order(
            [
                *(events.of_record(record, order.order_id) for record in found.records),
                *(events.of_outbox(row, order.order_id) for row in stored.outbox),
            ]
        ),
        traces,
        sum(sources.traces.dropped_of(trace.trace_id) for trace in traces) if sources.traces else 0,
        log_lines.find_lines(sources.logs, words) if sources.logs else NO_LOGS,
    )


def order_story(sources: Sources, order_id: str) -> OrderStory | None:
    """Return the whole story of an order, or None if there is no such order. Raises psycopg.Error."""
    now = order_now(sources, order_id)
    return None if now is None else story_of(now, what_happened(sources, now.stored))


def story_of(now: Now, happened: Happened) -> OrderStory:
    """Return both halves of a story as one."""
    return OrderStory(
        as_of=now.stored.order.now,
        order=_order_part(now.stored),
        payment=_payment_part(now.stored.order.order_id, now.stored.payment),
        reservation=_reservation_part(now.stored),
        waiting_for=now.waiting_for,
        events=happened.events,
        spans=[
            SpanPart(**asdict(view(span)), trace_id=span.trace_id) for trace in happened.traces for span in trace.spans
        ],
        dead_letters=now.stored.dead_letters,
        logs=happened.logs.lines,
        actions=now.stored.actions,
        limits=limits(happened),
    )


class MoreEvents(Struct, frozen=True, rename="camel"):
    """Events of the order that one topic holds from an offset on. `topic` says how far the search went."""

    events: Sequence[EventView]
    topic: TopicSearch | None
    error: str | None


def more_events(sources: Sources, order_id: str, topic: str, offset: int) -> MoreEvents:
    """Return the events of an order in one topic of the saga, from an offset on."""
    found = sources.search.onwards(order_id.encode(), topic, offset)
    shown = events.in_order([events.of_record(record, order_id) for record in found.records])
    return MoreEvents(shown, next(iter(found.topics), None), found.error)


def timeline_of(now: Now, happened: Happened | None) -> Timeline:
    """Return everything on one time axis. Without `happened`, only what PostgreSQL stores."""
    entries = [
        *timeline.decisions(now.stored),
        *timeline.actions(now.stored.actions),
        *timeline.dead_letters(now.stored.dead_letters),
        *timeline.pending(now.waiting_for, now.stored.order.now),
    ]
    if happened is not None:
        entries += timeline.events(happened.events)
        entries += timeline.spans([span for trace in happened.traces for span in trace.spans])
        entries += timeline.logs(happened.logs.lines)
    return timeline.timeline(entries)


def limits(happened: Happened) -> StoryLimits:
    """Return what the story may have left out."""
    found, logs = happened.found, happened.logs
    sentences = [topic.sentence for topic in found.topics if topic.state != "complete"]
    if found.error:
        sentences.append(f"{found.error} The events of this order are not shown.")
    elif not any(event.type == "order.created" for event in happened.events) and all(
        topic.state == "complete" for topic in found.topics if topic.topic.startswith("order.created")
    ):
        sentences.append(
            "order.created of this order is not in Kafka. Its retention has removed the record, the topic was created "
            "again, or the event was published long after the order was accepted."
        )
    if logs.left_out:
        sentences.append(f"{logs.left_out:,} older log lines of this order are not shown.")
    if logs.cut_files:
        sentences.append(
            f"Only the last {log_lines.FILE_MAX_BYTES >> 20} MiB were searched of {', '.join(logs.cut_files)}."
        )
    if happened.spans_dropped:
        sentences.append(f"The trace is too large: {happened.spans_dropped:,} of its spans were dropped.")
    return StoryLimits(
        kafka=found.error,
        topics=found.topics,
        has_log_files=logs.is_available,
        log_lines_left_out=logs.left_out,
        log_files_cut=logs.cut_files,
        spans_dropped=happened.spans_dropped,
        sentences=sentences,
    )


def known_times(stored: Stored) -> list[datetime]:
    """Return the times at which events of the order may have been published. An open order may get one now."""
    order, payment, reservation = stored.order, stored.payment, stored.reservation
    times = [order.created_at, order.updated_at, order.payment_at, order.stock_at, order.aborted_at, order.nudged_at]
    if payment is not None:
        times += [payment.decided_at, payment.closed_at]
    if reservation is not None:
        times.append(reservation.decided_at)
    times += [at for action in stored.actions for at in (action.at, action.finished_at)]
    times += [at for letter in stored.dead_letters for at in (letter.at, letter.state_at)]
    if order.is_open or not order.is_compensated:
        times.append(order.now)
    return [at for at in times if at is not None]


def expected_topics(stored: Stored) -> set[str]:
    """Return the topics that must have an event of the order, by what its rows say."""
    order, payment, reservation = stored.order, stored.payment, stored.reservation
    types = {"order.created"}
    types |= {"order.aborted"} if order.aborted_at else set()
    types |= {"order.updated"} if order.version > 1 else set()
    if payment is not None and payment.state in saga.PAYMENT_EVENTS:
        types.add(saga.PAYMENT_EVENTS[payment.state])
    if reservation is not None and reservation.state in saga.STOCK_EVENTS:
        types.add(saga.STOCK_EVENTS[reservation.state])
    return set(map(topic_of, types)) - {row.topic for row in stored.outbox}


def _traces(store: TraceStore | None, stored: Stored) -> list[Trace]:
    """Return the trace that began with the order, then the others that name it, such as that of a cancel."""
    if store is None:
        return []
    own = stored.order.trace_id
    ids = [*([own] if own else ()), *store.traces_of_order(stored.order.order_id)]
    found = ((trace_id, store.spans_of(trace_id)) for trace_id in list(dict.fromkeys(ids))[:TRACES_MAX])
    return [Trace(trace_id, spans[0].name, spans) for trace_id, spans in found if spans]


def _order_part(stored: Stored) -> OrderPart:
    order = stored.order
    is_checked = order.is_open or not order.is_compensated
    return OrderPart(
        order_id=order.order_id,
        user_id=order.user_id,
        amount=order.amount,
        currency=order.currency,
        status=order.status,
        failure_reason=order.failure_reason,
        version=order.version,
        created_at=order.created_at,
        updated_at=order.updated_at,
        payment=order.payment,
        payment_at=order.payment_at,
        stock=order.stock,
        stock_at=order.stock_at,
        aborted_at=order.aborted_at,
        is_compensated=order.is_compensated,
        nudges=order.nudges,
        nudged_at=order.nudged_at,
        next_check_at=order.next_check_at if is_checked else None,
        idempotency_key=order.idempotency_key,
        trace_id=order.trace_id,
        lines=[OrderLine(line.sku, line.qty, line.price) for line in stored.lines],
    )


def _payment_part(order_id: str, payment: PaymentRow | None) -> PaymentPart | None:
    if payment is None:
        return None
    return PaymentPart(
        state=payment.state,
        amount=payment.amount,
        reason=payment.reason,
        attempts=payment.attempts,
        next_attempt_at=payment.next_attempt_at,
        provider_reference=order_id,
        pending_since=payment.pending_since,
        decided_at=payment.decided_at,
        closed_at=payment.closed_at,
    )


def _reservation_part(stored: Stored) -> ReservationPart | None:
    reservation = stored.reservation
    if reservation is None:
        return None
    return ReservationPart(
        state=reservation.state,
        lines=reservation.lines,
        lines_left_out=reservation.lines_total - len(reservation.lines),
        reason=reservation.reason,
        skus=reservation.skus or (),
        decided_at=reservation.decided_at,
    )
