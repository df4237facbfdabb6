"""Orders as rows: how one that exists is locked, changed and read, by whichever service has the right to (P6).

The statements are functions of their parameters and rows, so that blocking and asyncio connections share them.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from orderstream.domain.events import Item
from orderstream.domain.order import AnyReason, Facts, Order, OrderState, PaymentFact, Status, StockFact
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

SQL = load("orderstream.postgres", "orders.sql")
ORDER_COLUMNS = 15
"""Columns of `lock_orders`; a statement that returns more has these first."""
_encode = msgspec.json.Encoder().encode


def locked(rows: Iterable[Sequence[Any]]) -> tuple[dict[str, Order], datetime | None]:
    """Turn the rows of `lock_orders` into orders by id, and the transaction's time; None where there is no row."""
    orders = {}
    now = None
    for order_id, status, payment, stock, payment_at, stock_at, reason, version, *rest in rows:
        user_id, amount, currency, created_at, updated_at, aborted_at, now = rest
        state = OrderState(status, Facts(payment, stock, payment_at, stock_at), reason, version)
        orders[order_id] = Order(order_id, user_id, amount, currency, created_at, updated_at, aborted_at, state)
    return orders, now


class _Change(Struct, frozen=True, omit_defaults=True):
    """One element of what `update_orders` takes: the columns that change."""

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
    """Return what `update_orders` takes for these orders as they are to be."""
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
    """Whether an order that exists is aborted, and why it failed if it did."""

    aborted: bool
    reason: AnyReason | None


def aborts_of(connection: Connection, ids: Sequence[str]) -> dict[str, Abort]:
    """Return what is recorded about the aborts of these orders; an order that does not exist is left out."""
    rows = connection.execute(SQL["aborts_of"], {"ids": ids}) if ids else ()
    return {order_id: Abort(aborted, reason) for order_id, aborted, reason in rows}


def items_of(tx: Connection, ids: Sequence[str]) -> dict[str, tuple[Item, ...]]:
    """Return the lines of orders, in the order of their SKUs."""
    items: dict[str, list[Item]] = {}
    for order_id, sku, qty, price in tx.execute(SQL["items_of"], {"ids": ids}) if ids else ():
        items.setdefault(order_id, []).append(Item(sku=sku, qty=qty, price=price))
    return {order_id: tuple(lines) for order_id, lines in items.items()}
