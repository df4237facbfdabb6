"""Reads what PostgreSQL stores about one order, in one snapshot."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from msgspec import Struct
from psycopg.rows import args_row

from orderstream.domain.order import AnyReason
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load
from orderstream.telemetry.tracing import TraceContext, trace_id

LINES_MAX = 1_000
"""Lines of an order that are read. The API accepts no more."""
OUTBOX_ROWS_MAX = 20
"""Events in the outbox that are read."""
ACTIONS_MAX = 50
"""Actions of operators that are read: the newest."""
LETTERS_MAX = 50
"""Dead letters that are read: the newest."""

SQL = load("orderstream.console.orders", "story.sql")

R = TypeVar("R", bound=Struct)


class OrderRow(Struct, frozen=True):
    """A row of `orders`: the columns of `story_order`. `now` is the database's time."""

    order_id: str
    user_id: str
    amount: Decimal
    currency: str
    status: str
    failure_reason: AnyReason | None
    version: int
    created_at: datetime
    updated_at: datetime
    payment: str
    payment_at: datetime | None
    stock: str
    stock_at: datetime | None
    next_check_at: datetime
    nudges: int
    nudged_at: datetime | None
    aborted_at: datetime | None
    idempotency_key: str | None
    traceparent: str | None
    tracestate: str | None
    now: datetime

    @property
    def trace_id(self) -> str | None:
        """The trace of the request that created the order."""
        return trace_id(TraceContext(self.traceparent, self.tracestate))

    @property
    def is_open(self) -> bool:
        """Whether the status is one that this version changes without an operator."""
        return self.status in ("PROCESSING", "PAID")

    @property
    def is_compensated(self) -> bool:
        """Whether the order holds no money and no stock, or was not aborted."""
        return self.aborted_at is None or (self.payment in ("failed", "voided") and self.stock == "released")


class PaymentRow(Struct, frozen=True):
    """A row of `payments`: the columns of `story_payment`."""

    state: str
    amount: Decimal | None
    reason: AnyReason | None
    attempts: int
    next_attempt_at: datetime | None
    pending_since: datetime | None
    decided_at: datetime
    closed_at: datetime | None
    traceparent: str | None
    tracestate: str | None


class ReservationRow(Struct, frozen=True):
    """A row of `reservations`: the columns of `story_reservation`. `lines` may be the first of `lines_total`."""

    state: str
    lines: Mapping[str, int]
    lines_total: int
    reason: AnyReason | None
    skus: Sequence[str] | None
    decided_at: datetime


class LineRow(Struct, frozen=True):
    """A line of an order."""

    sku: str
    qty: int
    price: Decimal


class OutboxEvent(Struct, frozen=True):
    """An event that waits in the outbox: the columns of `story_outbox`."""

    row_id: int
    topic: str
    event_id: str
    value: str
    traceparent: str | None
    created_at: datetime


class ActionRow(Struct, frozen=True, rename="camel"):
    """What an operator did to an order: the columns of `story_actions`. `result` is JSON as text."""

    action_id: int
    at: datetime
    actor: str
    kind: str
    reason: str
    state: str
    result: str | None
    finished_at: datetime | None


class DeadLetterRow(Struct, frozen=True, rename="camel"):
    """A dead letter of the order, as the index has it: the columns of `story_dead_letters`."""

    service: str
    partition: int
    offset: int
    at: datetime | None
    reason: str
    source_topic: str
    source_partition: int | None
    source_offset: int | None
    error: str
    tries: int
    state: str
    state_at: datetime | None


class Stored(Struct, frozen=True):
    """Everything that PostgreSQL stores about one order at one moment."""

    order: OrderRow
    payment: PaymentRow | None
    reservation: ReservationRow | None
    lines: Sequence[LineRow]
    outbox: Sequence[OutboxEvent]
    actions: Sequence[ActionRow] = ()
    dead_letters: Sequence[DeadLetterRow] = ()
    """Of actions and of dead letters, the newest are read. The oldest of them is the first."""


def read_stored(connection: Connection, order_id: str) -> Stored | None:
    """Return what is stored about an order, or None if there is no such order. Raises psycopg.Error."""
    with connection.transaction():
        connection.execute(SQL["one_snapshot"])
        order = _first(connection, OrderRow, "story_order", {"id": order_id})
        if order is None:
            return None
        limited = {"id": order_id, "limit": LINES_MAX}
        return Stored(
            order,
            _first(connection, PaymentRow, "story_payment", {"id": order_id}),
            _first(connection, ReservationRow, "story_reservation", limited),
            _all(connection, LineRow, "story_lines", limited),
            _all(connection, OutboxEvent, "story_outbox", {"id": order_id, "limit": OUTBOX_ROWS_MAX}),
            _all(connection, ActionRow, "story_actions", {"id": order_id, "limit": ACTIONS_MAX})[::-1],
            _all(connection, DeadLetterRow, "story_dead_letters", {"id": order_id, "limit": LETTERS_MAX})[::-1],
        )


def _all(connection: Connection, kind: type[R], name: str, parameters: Mapping[str, Any]) -> list[R]:
    with connection.cursor(row_factory=args_row(kind)) as cursor:
        return cursor.execute(SQL[name], parameters).fetchall()


def _first(connection: Connection, kind: type[R], name: str, parameters: Mapping[str, Any]) -> R | None:
    return next(iter(_all(connection, kind, name, parameters)), None)
