"""Nudges stalled orders, fails them at their deadline, and repeats unanswered aborts (P5).

The watchdog only emits an order's own events again, through the outbox. Every worker answers a repeated event with the
recorded result. A repeated event therefore replaces a lost one, and no step is done twice. The watchdog leaves an order
alone that waits in the outbox or in Kafka (consumed.py), and reads few dead index entries (due_scan.py).
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, assert_never

import psycopg
from msgspec import Struct
from msgspec.structs import asdict

from orderstream.domain.events import Item, OrderCreated, build, order_aborted, order_updated
from orderstream.domain.order import settled, time_out
from orderstream.order_service.consumed import Consumed
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import SQL as ORDERS
from orderstream.postgres.orders import changes, items_of, locked
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.postgres.sql import load
from orderstream.telemetry import logs, metrics
from orderstream.telemetry.tracing import TraceContext, trace_id
from orderstream.worker.due_scan import FLOOR, DueScan, TimeRange, statement_limit
from orderstream.worker.handler import Timer

SQL = load("orderstream.order_service")
EVERY_SECONDS = 1.0
ROWS_PER_RUN = 200
"""Rate limit, for each second: at most this many nudges, and as many repeated aborts."""
PENDING_MARGIN_SECONDS = 900
"""payment-worker voids a payment that is pending too long. If it has not done so after this time, the watchdog acts."""
OLDEST_LAG = timedelta(minutes=1)
"""Transactions commit in another order than they began. An abort is at most this much older than one that is shown."""

log = logs.get()


class WatchdogSchedule(Struct, frozen=True):
    """The waits of the watchdog, in seconds.

    The wait before a nudge doubles from `first_seconds` to `longest_seconds`. An order that is older than
    `deadline_seconds` and was nudged `deadline_nudges` times fails. The watchdog ignores an order while its payment
    waits for the customer or the bank, for `pending_seconds` at most.
    """

    first_seconds: float = 30
    longest_seconds: float = 300
    deadline_seconds: float = 900
    deadline_nudges: int = 3
    pending_seconds: float = 1_800 + PENDING_MARGIN_SECONDS


class DueOrder(Struct, frozen=True):
    """An open order that was due: the columns of `claim_stalled`."""

    order_id: str
    user_id: str
    amount: Decimal
    currency: str
    created_at: datetime
    traceparent: str | None
    tracestate: str | None
    state: Literal["waiting", "stalled", "overdue"]
    due_at: datetime

    @property
    def trace_context(self) -> TraceContext:
        """The trace context of the request that created the order."""
        return TraceContext(self.traceparent, self.tracestate)


class Uncompensated(Struct, frozen=True):
    """An aborted order that was due: the columns of `claim_uncompensated`."""

    order_id: str
    traceparent: str | None
    tracestate: str | None
    waits: bool
    due_at: datetime

    @property
    def trace_context(self) -> TraceContext:
        """The trace context of the request that created the order."""
        return TraceContext(self.traceparent, self.tracestate)


Claim = Callable[[Connection, dict[str, Any]], list[datetime]]
"""Claims and handles the due orders of a range, in one transaction. Returns the time at which each order was due."""


class Watchdog:
    """The timers of the order service."""

    def __init__(self, schedule: WatchdogSchedule, consumed: Consumed | None = None) -> None:
        """Without `consumed`, no order counts as waiting in Kafka."""
        self._schedule = schedule
        self._consumed = consumed
        self._open = DueScan(time.monotonic)
        self._uncompensated = DueScan(time.monotonic)
        self._oldest_after = FLOOR
        self.timers: Sequence[Timer] = (
            Timer("nudge", EVERY_SECONDS, self.nudge),
            Timer("repeat_aborts", EVERY_SECONDS, self.repeat_aborts),
        )

    def nudge(self, connection: Connection) -> bool:
        """Emit order.created again for stalled orders, and fail the orders that are past their deadline."""
        self._look(connection, self._open, "any_stalled", self._nudge_or_end)
        return False

    def repeat_aborts(self, connection: Connection) -> bool:
        """Emit order.aborted again for orders that are not compensated, and measure the oldest. There is no limit."""
        self._look(connection, self._uncompensated, "any_uncompensated", self._repeat_aborts)
        self._measure(connection)
        return False

    def _look(self, connection: Connection, due: DueScan, any_due: str, claim: Claim) -> None:
        """Claim the due orders, range by range, at most ROWS_PER_RUN. Claim none while Kafka does not answer."""
        row = connection.execute(SQL["now"]).fetchone()
        assert row is not None
        (now,), left = row, ROWS_PER_RUN
        for part in due.ranges(now):
            started = time.monotonic()
            try:
                times = self._take(connection, part, now, limit=left, any_due=any_due, claim=claim)
            except psycopg.errors.QueryCanceled:
                if not part.is_limited:
                    raise
                due.note_timeout()
                return
            if times is None:
                return
            is_full = len(times) == left
            due.note_scanned(part, max(times) if is_full else None, time.monotonic() - started)
            left -= len(times)
            if not left:
                return

    def _take(
        self, connection: Connection, part: TimeRange, now: datetime, *, limit: int, any_due: str, claim: Claim
    ) -> list[datetime] | None:
        """Claim the due orders of a range and return their due times. Return None while Kafka does not answer."""
        between = {"after": part.after, "upto": part.upto}
        with statement_limit(connection, part):
            if not self._is_fresh and connection.execute(SQL[any_due], between).fetchone() is None:
                return []
        if (passed := self._passed(connection, now)) is None:
            return None
        with statement_limit(connection, part):
            return claim(connection, between | {"passed": passed, "limit": limit})

    @property
    def _is_fresh(self) -> bool:
        return self._consumed is None or self._consumed.is_fresh

    def _passed(self, connection: Connection, now: datetime) -> datetime | None:
        """Return the time that the workers have passed, or None while it is unknown."""
        if self._consumed is None:
            return now
        if not self._consumed.is_fresh:
            self._consumed.refresh(connection)
        return self._consumed.until

    def _nudge_or_end(self, connection: Connection, parameters: dict[str, Any]) -> list[datetime]:
        with connection.transaction():
            rows = connection.execute(SQL["claim_stalled"], parameters | asdict(self._schedule))
            orders = [DueOrder(*row) for row in rows]
            stalled, overdue = _by_state(orders)
            items = items_of(connection, [order.order_id for order in stalled])
            append(connection, [_created(order, items.get(order.order_id, ())) for order in stalled])
            ended = _end(connection, overdue)
        if stalled:
            first = stalled[0]
            trace = trace_id(first.trace_context)
            log.warning("stalled_orders_nudged", orders=len(stalled), order_id=first.order_id, trace_id=trace)
        if ended:
            order_id, failed = next(iter(overdue.items()))
            trace = trace_id(failed.trace_context)
            log.warning("overdue_orders_failed", orders=ended, order_id=order_id, trace_id=trace)
        return [order.due_at for order in orders]

    @staticmethod
    def _repeat_aborts(connection: Connection, parameters: dict[str, Any]) -> list[datetime]:
        with connection.transaction():
            rows = [Uncompensated(*row) for row in connection.execute(SQL["claim_uncompensated"], parameters)]
            repeated = {order.order_id: order for order in rows if not order.waits}
            if repeated:
                orders, _ = locked(connection.execute(ORDERS["lock_orders"], {"ids": sorted(repeated)}))
                append(
                    connection,
                    [OutboxRow(order_aborted(order), repeated[key].trace_context) for key, order in orders.items()],
                )
        if repeated:
            order_id, aborted = next(iter(repeated.items()))
            trace = trace_id(aborted.trace_context)
            log.warning("aborts_repeated", orders=len(repeated), order_id=order_id, trace_id=trace)
        return [order.due_at for order in rows]

    def _measure(self, connection: Connection) -> None:
        """Show how old the oldest abort is that is not compensated. Begin at the last one that was found."""
        row = connection.execute(SQL["oldest_uncompensated"], {"after": self._oldest_after}).fetchone()
        assert row is not None
        oldest, now = row
        metrics.UNCOMPENSATED_OLDEST_SECONDS.set((now - (oldest or now)).total_seconds())
        self._oldest_after = max(self._oldest_after, (oldest or now) - OLDEST_LAG)


def _by_state(orders: Sequence[DueOrder]) -> tuple[list[DueOrder], dict[str, DueOrder]]:
    """Return the stalled orders, and the overdue orders by id. Waiting orders are left alone."""
    stalled: list[DueOrder] = []
    overdue: dict[str, DueOrder] = {}
    for order in orders:
        match order.state:
            case "stalled":
                stalled.append(order)
            case "overdue":
                overdue[order.order_id] = order
            case "waiting":
                pass
            case _:
                assert_never(order.state)
    return stalled, overdue


def _created(order: DueOrder, items: tuple[Item, ...]) -> OutboxRow:
    payload = OrderCreated(
        order_id=order.order_id, user_id=order.user_id, items=items, amount=order.amount, currency=order.currency
    )
    return OutboxRow(build(payload, order.created_at), order.trace_context)


def _end(connection: Connection, overdue: dict[str, DueOrder]) -> int:
    """Fail and abort the orders that are still open. Their rows are locked already. Return the number of orders."""
    if not overdue:
        return 0
    orders, now = locked(connection.execute(ORDERS["lock_orders"], {"ids": sorted(overdue)}))
    ended = [
        order.with_state(time_out(order.state), now, abort=True)
        for order in orders.values()
        if now is not None and not settled(order.state.status)
    ]
    connection.execute(ORDERS["update_orders"], changes(ended))
    rows = [
        OutboxRow(event(order), overdue[order.order_id].trace_context)
        for order in ended
        for event in (order_updated, order_aborted)
    ]
    append(connection, rows)
    return len(ended)
