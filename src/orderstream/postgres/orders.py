"""Orders as rows: how one that exists is locked, changed and read, by whichever service has the right to (P6).

The statements are functions of their parameters and rows, so that blocking and asyncio connections share them.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from orderstream.domain.events import Item
from orderstream.domain.order import Facts, Order, OrderState
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

SQL = load("orderstream.postgres", "orders.sql")


def locked(rows: Iterable[Sequence[Any]]) -> tuple[dict[str, Order], datetime | None]:
    """Turn the rows of `lock_orders` into orders by id, and the transaction's time; None where there is no row."""
    orders = {}
    now = None
    for order_id, status, payment, stock, payment_at, stock_at, reason, version, *rest in rows:
        user_id, amount, currency, created_at, updated_at, aborted_at, now = rest
        state = OrderState(status, Facts(payment, stock, payment_at, stock_at), reason, version)
        orders[order_id] = Order(order_id, user_id, amount, currency, created_at, updated_at, aborted_at, state)
    return orders, now


def changes(orders: Sequence[Order]) -> dict[str, list[Any]]:
    """Return the arrays that `update_orders` takes for these orders as they are to be."""
    states = [order.state for order in orders]
    return {
        "ids": [order.order_id for order in orders],
        "statuses": [state.status for state in states],
        "payments": [state.facts.payment for state in states],
        "stocks": [state.facts.stock for state in states],
        "payments_at": [state.facts.payment_at for state in states],
        "stocks_at": [state.facts.stock_at for state in states],
        "reasons": [state.failure_reason for state in states],
        "versions": [state.version for state in states],
        "aborts_at": [order.aborted_at for order in orders],
    }


def items_of(tx: Connection, ids: Sequence[str]) -> dict[str, tuple[Item, ...]]:
    """Return the lines of orders, in the order of their SKUs."""
    items: dict[str, list[Item]] = {}
    for order_id, sku, qty, price in tx.execute(SQL["items_of"], {"ids": ids}) if ids else ():
        items.setdefault(order_id, []).append(Item(sku=sku, qty=qty, price=price))
    return {order_id: tuple(lines) for order_id, lines in items.items()}
