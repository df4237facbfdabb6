"""Fills a database with millions of orders as they are in production, for the measurement of the console.

The orders are spread over 30 days. A few users and SKUs have most of the orders. Of a thousand orders, about 900 are
CONFIRMED, 80 FAILED and 20 CANCELLED. The newest few hundred orders are open, and some old orders are stuck or not
compensated. The payments and reservations agree with the orders. The ids are UUIDs of version 7, as the gateway makes
them.
"""

from concurrent.futures import ThreadPoolExecutor

import psycopg

DAYS = 30
ROWS_AT_ONCE = 250_000
CONNECTIONS = 2
"""Connections that insert orders at the same time: one for each core of a small machine."""
OPEN = 500
"""The newest orders, which are open."""
STUCK_EVERY = 50_000
"""Of the older orders, each one with a number that this divides is stuck."""
UNCOMPENSATED_EVERY = 5_000
"""Of the CANCELLED orders, each one with a number that this divides is not compensated."""
LARGE_USER = "user-large"
"""A user with one order of 101."""
SMALL_USER = "user-small"
"""A user with ten orders among all."""
RARE_SKU = "SKU-RARE"

_ORDERS = """
WITH placed AS (
INSERT INTO orders (
    id, user_id, amount, currency, status, failure_reason, created_at, updated_at, payment, stock, payment_at, stock_at,
    version, next_check_at, nudges, aborted_at, idempotency_key, request_hash, traceparent
)
SELECT
    concat(substr(time, 1, 8), '-', substr(time, 9), '-7', substr(digest, 1, 3), '-8', substr(digest, 4, 3), '-',
           substr(digest, 7, 12)),
    CASE WHEN number %% (%(orders)s / 10) = 7 THEN %(small_user)s
         WHEN number %% 101 = 0 THEN %(large_user)s
         ELSE 'user-' || (300000 * power(('x' || substr(digest, 19, 6))::bit(24)::int / 16777216.0, 2))::int END,
    round((1 + ('x' || substr(digest, 25, 6))::bit(24)::int %% 50000 / 100.0)::numeric, 2), 'USD',
    status, reason, at, at + settles,
    CASE status WHEN 'CONFIRMED' THEN 'authorized'
                WHEN 'FAILED' THEN CASE reason WHEN 'PAYMENT_DECLINED' THEN 'failed' ELSE 'voided' END
                WHEN 'CANCELLED'
                    THEN CASE WHEN number %% %(uncompensated_every)s = 0 THEN 'authorized' ELSE 'voided' END
                WHEN 'PAID' THEN 'authorized' ELSE 'none' END,
    CASE status WHEN 'CONFIRMED' THEN 'reserved'
                WHEN 'FAILED' THEN CASE reason WHEN 'PAYMENT_DECLINED' THEN 'none' ELSE 'released' END
                WHEN 'CANCELLED' THEN 'released' ELSE 'none' END,
    CASE WHEN status <> 'PROCESSING' THEN at + settles / 2 END,
    CASE WHEN status IN ('CONFIRMED', 'CANCELLED') THEN at + settles END,
    2, now() + interval '30 days', CASE WHEN stuck THEN 2 ELSE 0 END,
    CASE WHEN status = 'CANCELLED' OR reason <> 'PAYMENT_DECLINED' THEN at + settles END,
    CASE WHEN number %% 2 = 0 THEN 'key-' || number END, CASE WHEN number %% 2 = 0 THEN decode(digest, 'hex') END,
    concat('00-', digest, '-', substr(digest, 1, 16), '-01')
FROM (
    SELECT number, at, md5(number::text) AS digest,
           lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS time, stuck,
           20 * interval '1 ms' + number %% 1000 * interval '1 ms' AS settles,
           CASE WHEN is_open THEN CASE WHEN number %% 2 = 0 THEN 'PAID' ELSE 'PROCESSING' END
                WHEN kind < 20 THEN 'CANCELLED' WHEN kind < 100 THEN 'FAILED' ELSE 'CONFIRMED' END AS status,
           CASE WHEN is_open OR kind < 20 OR kind >= 100 THEN NULL
                WHEN number %% 500000 = 13 THEN 'TIMED_OUT'
                WHEN kind < 70 THEN 'PAYMENT_DECLINED' WHEN kind < 95 THEN 'OUT_OF_STOCK'
                WHEN kind < 98 THEN 'UNKNOWN_SKU' ELSE 'PROVIDER_UNAVAILABLE' END AS reason
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS number
    CROSS JOIN LATERAL (
        SELECT now() - (%(orders)s - number) * (%(days)s * interval '1 day' / %(orders)s) AS at,
               number * 7 %% 1000 AS kind, number %% %(stuck_every)s = 1 AND number <= %(orders)s - 5000 AS stuck,
               number %% %(stuck_every)s = 1 OR number > %(orders)s - %(open)s AS is_open
    ) AS facts
) AS made
RETURNING id
)
SELECT min(id), max(id) FROM placed
"""
"""Inserts orders, and returns their first and their last id."""
_ITEMS = """
INSERT INTO order_items (order_id, sku, qty, price)
SELECT id, CASE WHEN number = 1 AND substr(id, 20, 4) = '8abc' THEN %(rare_sku)s
                ELSE 'SKU-' || (('x' || substr(id, 25, 6))::bit(24)::int %% 5000 + number) END, number, amount
FROM (
    SELECT id, amount FROM orders WHERE id BETWEEN %(first_id)s AND %(last_id)s AND user_id LIKE 'user-%%' ORDER BY id
) AS placed
CROSS JOIN LATERAL generate_series(1, 1 + ('x' || substr(id, 35, 2))::bit(8)::int %% 3) AS number
"""
_PAYMENTS = """
INSERT INTO payments (order_id, state, amount, reason, attempts, next_attempt_at, decided_at, closed_at)
SELECT id, CASE payment WHEN 'authorized' THEN CASE status WHEN 'CANCELLED' THEN 'VOIDING' ELSE 'AUTHORIZED' END
                        WHEN 'failed' THEN 'FAILED' WHEN 'voided' THEN 'VOIDED' ELSE 'PENDING' END,
       amount, CASE payment WHEN 'failed' THEN failure_reason END, 1,
       CASE WHEN payment = 'none' OR payment = 'authorized' AND status = 'CANCELLED'
            THEN now() + interval '30 days' END,
       coalesce(payment_at, created_at), CASE WHEN payment IN ('failed', 'voided') THEN payment_at END
FROM (
    SELECT * FROM orders WHERE id BETWEEN %(first_id)s AND %(last_id)s AND user_id LIKE 'user-%%' ORDER BY id
) AS placed
"""
_RESERVATIONS = """
INSERT INTO reservations (order_id, state, lines, reason, decided_at)
SELECT id, CASE stock WHEN 'reserved' THEN 'RESERVED' ELSE 'RELEASED' END,
       CASE stock WHEN 'reserved' THEN jsonb_build_object('SKU-1', 1) ELSE '{}' END, failure_reason, updated_at
FROM (
    SELECT * FROM orders WHERE id BETWEEN %(first_id)s AND %(last_id)s AND user_id LIKE 'user-%%' ORDER BY id
) AS placed
WHERE stock IN ('reserved', 'released')
"""


def fill(superuser_url: str, orders: int, first: int = 1, last: int | None = None) -> None:
    """Insert the orders `first` to `last` (all) of `orders` with their lines, payments and reservations, and analyze.

    Parts must be inserted in their order. Other orders may exist if their users have other names. The superuser is
    needed, because it may leave out the checks of millions of foreign keys.
    """
    last = last or orders
    parts = [(begin, min(begin + ROWS_AT_ONCE - 1, last)) for begin in range(first, last + 1, ROWS_AT_ONCE)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for filled in [pool.submit(_fill_part, superuser_url, *part, orders) for part in parts]:
            filled.result()
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE orders, order_items, payments, reservations")


def _fill_part(superuser_url: str, first: int, last: int, orders: int) -> None:
    parameters = {
        "first": first,
        "last": last,
        "orders": orders,
        "days": DAYS,
        "open": OPEN,
        "stuck_every": STUCK_EVERY,
        "uncompensated_every": UNCOMPENSATED_EVERY,
        "large_user": LARGE_USER,
        "small_user": SMALL_USER,
        "rare_sku": RARE_SKU,
    }
    with psycopg.connect(superuser_url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET session_replication_role = replica")
        ids = connection.execute(_ORDERS.encode(), parameters).fetchone()
        assert ids is not None
        parameters |= {"first_id": ids[0], "last_id": ids[1]}
        for statement in (_ITEMS, _PAYMENTS, _RESERVATIONS):
            connection.execute(statement.encode(), parameters)
