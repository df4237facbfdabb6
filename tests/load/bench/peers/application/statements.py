"""The SQL that the applications of several contestants use, with the parameters of each statement.

A durable workflow may repeat a step. So each statement changes nothing the second time. Each is a transaction of its
own, with one round trip.
"""

import json
from decimal import Decimal
from typing import Any

from order import Authorization, Order

RECORD = """
WITH recorded AS (
    INSERT INTO orders (id, user_id, amount, currency, status, created_at, updated_at)
    VALUES ($1::text, $2::text, $3::numeric, $4::text, 'PROCESSING', $5::timestamptz, $5::timestamptz)
    ON CONFLICT DO NOTHING
)
INSERT INTO order_items (order_id, sku, qty, price)
SELECT $1::text, * FROM unnest($6::text[], $7::int[], $8::numeric[])
ON CONFLICT DO NOTHING
"""
"""Records an order and its items."""

CONFIRM = """
WITH lines AS (
    SELECT * FROM unnest($2::text[], $3::int[]) AS line (sku, qty)
),
stocked AS (
    SELECT sku, qty FROM inventory JOIN lines USING (sku) ORDER BY sku FOR NO KEY UPDATE OF inventory
),
reservation AS (
    INSERT INTO reservations (order_id, state, lines)
    SELECT $1::text, 'RESERVED', $4::jsonb
    WHERE (SELECT count(*) FROM stocked) = cardinality($2::text[])
    ON CONFLICT DO NOTHING
    RETURNING order_id
),
taken AS (
    UPDATE inventory
    SET available = available - qty, reserved = reserved + qty
    FROM stocked, reservation
    WHERE inventory.sku = stocked.sku
),
payment AS (
    INSERT INTO payments (order_id, state, amount)
    SELECT order_id, 'AUTHORIZED', $5::numeric FROM reservation
)
UPDATE orders SET status = 'CONFIRMED', updated_at = clock_timestamp()
FROM reservation
WHERE id = reservation.order_id
RETURNING id
"""
"""Reserves the stock of an order and confirms it.

The SKUs are locked in their order, so that two orders cannot wait for each other. Returns no row if the order has a
reservation already or if a SKU does not exist. If the stock is too small, the check of `inventory` refuses the
statement.
"""

FAIL = """
WITH refusal AS (
    INSERT INTO reservations (order_id, state, lines)
    VALUES ($1::text, 'FAILED', '{}')
    ON CONFLICT DO NOTHING
    RETURNING order_id
),
payment AS (
    INSERT INTO payments (order_id, state, amount)
    SELECT order_id, 'VOIDED', $2::numeric FROM refusal
)
UPDATE orders SET status = 'FAILED', updated_at = clock_timestamp()
FROM refusal
WHERE id = refusal.order_id
"""
"""Fails an order whose stock cannot be reserved. Changes nothing if the order has a reservation already."""


def to_record(order: Order) -> list[Any]:
    """Return the parameters of RECORD."""
    skus, quantities, prices = zip(*((item.sku, item.qty, item.price) for item in order.items), strict=True)
    head = [order.id, order.userId, order.amount, order.currency, order.received_at]
    return [*head, list(skus), list(quantities), list(prices)]


def to_confirm(order: Order, payment: Authorization) -> list[Any]:
    """Return the parameters of CONFIRM."""
    lines = {item.sku: item.qty for item in order.items}
    return [order.id, list(lines), list(lines.values()), json.dumps(lines), Decimal(payment.amount)]


def to_fail(order: Order, payment: Authorization) -> list[Any]:
    """Return the parameters of FAIL."""
    return [order.id, Decimal(payment.amount)]
