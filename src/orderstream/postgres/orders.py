"""Orders as rows: how services lock, change and read an order that exists (P6).

The functions only build parameters and read rows, so that blocking and asyncio connections share the statements.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import Struct

from orderstream.domain.events import Item
from orderstream.domain.order import AnyReason, Facts, Order, OrderState, PaymentFact, Status, StockFact
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

SQL = load("orderstream.postgres", "orders.sql")
_encode = msgspec.json.Encoder().encode


class LockedOrder(Struct, frozen=True):
    """A row of `lock_orders`: an order, and the time of the transaction. A subclass adds the columns of a join."""

    order_id: str
    status: Status
    payment: PaymentFact
    stock: StockFact
    payment_at: datetime | None
    stock_at: datetime | None
    failure_reason: AnyReason | None
    version: int
    user_id: str
    amount: Decimal
    currency: str
    created_at: datetime
    updated_at: datetime
    aborted_at: datetime | None
    now: datetime

    def order(self) -> Order:
        """Return the order of this row."""
        facts = Facts(self.payment, self.stock, self.payment_at, self.stock_at)
        return Order(
            self.order_id,
            self.user_id,
            self.amount,
            self.currency,
            self.created_at,
            self.updated_at,
            self.aborted_at,
            OrderState(self.status, facts, self.failure_reason, self.version),
        )


def locked(rows: Iterable[Sequence[Any]]) -> tuple[dict[str, Order], datetime | None]:
    """Return the orders of the rows of `lock_orders` by id, and the transaction's time, or None if there is no row."""
    found = [LockedOrder(*row) for row in rows]
    return {row.order_id: row.order() for row in found}, found[0].now if found else None


class _Change(Struct, frozen=True, omit_defaults=True):
    """One element of the parameter of `update_orders`: the columns that change."""

    id: str
    status: Status
    payment: PaymentFact
    stock: StockFact
    version: int
    payment_at: datetime | None = None
    stock_at: datetime | None = None
    failure_reason: AnyReason | None = None
    aborted_at: datetime | None = None


def changes(orders: Iterable[Order]) -> dict[str, str]:
    """Return the parameter of `update_orders` that writes these orders."""
    return {"orders": _encode([_change(order) for order in orders]).decode()}


def _change(order: Order) -> _Change:
    state = order.state
    facts = state.facts
    return _Change(
        order.order_id,
        state.status,
        facts.payment,
        facts.stock,
        state.version,
        facts.payment_at,
        facts.stock_at,
        state.failure_reason,
        order.aborted_at,
    )


class Abort(Struct, frozen=True):
    """A row of `aborts_of`: whether an order is aborted, and why it failed if it did."""

    order_id: str
    aborted: bool
    reason: AnyReason | None


def aborts_of(connection: Connection, ids: Sequence[str]) -> dict[str, Abort]:
    """Return for each of these orders whether it is aborted. An order that does not exist is left out."""
    rows = connection.execute(SQL["aborts_of"], {"ids": ids}) if ids else ()
    return {abort.order_id: abort for abort in (Abort(*row) for row in rows)}


def items_of(tx: Connection, ids: Sequence[str]) -> dict[str, tuple[Item, ...]]:
    """Return the lines of orders, in the order of their SKUs."""
    items: dict[str, list[Item]] = {}
    for order_id, sku, qty, price in tx.execute(SQL["items_of"], {"ids": ids}) if ids else ():
        items.setdefault(order_id, []).append(Item(sku=sku, qty=qty, price=price))
    return {order_id: tuple(lines) for order_id, lines in items.items()}
