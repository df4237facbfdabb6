"""Checks that nothing was lost: every 201 is a CONFIRMED order, and the stock agrees with the orders."""

import psycopg

from tests.load.bench.generator_job import Report

_ORDERS = """
SELECT count(*), count(*) FILTER (WHERE status = 'CONFIRMED') FROM orders WHERE user_id = %s
"""
_STOCK = """
SELECT available, reserved,
       (SELECT coalesce(sum(item.qty), 0)
        FROM order_items AS item JOIN orders AS o ON o.id = item.order_id
        WHERE item.sku = stock.sku AND o.status = 'CONFIRMED')
FROM inventory AS stock WHERE sku = %s
"""

_DECISIONS = """
SELECT count(*)
FROM orders AS o
LEFT JOIN payments AS p ON p.order_id = o.id
LEFT JOIN reservations AS r ON r.order_id = o.id
WHERE o.user_id = %s AND o.status = 'CONFIRMED'
  AND (p.state IS DISTINCT FROM 'AUTHORIZED' OR p.amount IS DISTINCT FROM o.amount
       OR r.state IS DISTINCT FROM 'RESERVED')
"""
_STOCKS = """
SELECT count(*)
FROM inventory AS stock
LEFT JOIN (
    SELECT item.sku, sum(item.qty) AS qty
    FROM order_items AS item JOIN orders AS o ON o.id = item.order_id
    WHERE o.status = 'CONFIRMED' AND item.sku LIKE %(pattern)s
    GROUP BY item.sku
) AS sold ON sold.sku = stock.sku
WHERE stock.sku LIKE %(pattern)s AND (available + reserved <> %(stocked)s OR reserved <> coalesce(sold.qty, 0))
"""


def orders(connection: psycopg.Connection, user: str, report: Report) -> list[str]:
    """Compare the orders of `user` with the answers that the client got. Return a line for each problem."""
    rows, confirmed = _count(connection, user)
    problems = existence(connection, user, report.accepted, report.unanswered)
    if confirmed != rows:
        problems.append(f"{user}: {rows} orders exist, {confirmed} are CONFIRMED")
    return problems


def existence(connection: psycopg.Connection, user: str, accepted: int, uncertain: int) -> list[str]:
    """Compare the number of orders of `user` with the number of accepted ones. Return a line if they do not agree.

    A request without a certain answer may or may not have created an order. Both are correct.
    """
    rows, _ = _count(connection, user)
    if accepted <= rows <= accepted + uncertain:
        return []
    return [f"{user}: {accepted} orders were accepted ({uncertain} unanswered), {rows} exist"]


def _count(connection: psycopg.Connection, user: str) -> tuple[int, int]:
    """Return how many orders of `user` exist, and how many of them are CONFIRMED."""
    row = connection.execute(_ORDERS, (user,)).fetchone()
    assert row is not None
    rows, confirmed = row
    return rows, confirmed


def stock(connection: psycopg.Connection, sku: str, stocked: int) -> list[str]:
    """Compare the stock of `sku` with the confirmed orders. Return a line for each problem."""
    row = connection.execute(_STOCK, (sku,)).fetchone()
    assert row is not None
    available, reserved, sold = row
    problems = []
    if available + reserved != stocked:
        problems.append(f"{sku}: {stocked} units were stocked, {available} + {reserved} exist")
    if reserved != sold:
        problems.append(f"{sku}: {reserved} units are reserved, the confirmed orders hold {sold}")
    return problems


def decisions(connection: psycopg.Connection, user: str) -> list[str]:
    """Return a line if CONFIRMED orders of `user` have no payment of their amount, or no reservation."""
    row = connection.execute(_DECISIONS, (user,)).fetchone()
    assert row is not None
    return [f"{user}: {row[0]} CONFIRMED orders have no payment or no reservation"] if row[0] else []


def stocks(connection: psycopg.Connection, pattern: str, stocked: int) -> list[str]:
    """Compare the stock of all SKUs that are LIKE `pattern` with the confirmed orders. Return a line if some differ."""
    row = connection.execute(_STOCKS, {"pattern": pattern, "stocked": stocked}).fetchone()
    assert row is not None
    return [f"the stock of {row[0]} SKUs does not agree with the confirmed orders"] if row[0] else []
