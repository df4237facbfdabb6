-- Orders as rows: the one way in which an order that exists is changed.

-- name: lock_orders
-- The orders that a batch touches, with the transaction's time. Parameter: order ids. Index: orders_pkey.
-- Locks the rows in the order of their ids, so that two processes never wait for each other crosswise.
SELECT id, status, payment, stock, payment_at, stock_at, failure_reason, version,
       user_id, amount, currency, created_at, updated_at, aborted_at, now()
FROM orders
WHERE id = ANY(%(ids)s::text[])
ORDER BY id
FOR NO KEY UPDATE;

-- name: update_orders
-- Writes what changed. Something has happened to these orders: the watchdog looks at them in 30 s at the earliest.
-- Parameters: arrays of equal length. Index: orders_pkey. The rows are locked already (lock_orders).
UPDATE orders o
SET status = c.status, payment = c.payment, stock = c.stock, payment_at = c.payment_at, stock_at = c.stock_at,
    failure_reason = c.failure_reason, version = c.version, updated_at = now(),
    aborted_at = c.aborted_at,
    next_check_at = now() + interval '30 seconds'
FROM unnest(
        %(ids)s::text[], %(statuses)s::text[], %(payments)s::text[], %(stocks)s::text[],
        %(payments_at)s::timestamptz[], %(stocks_at)s::timestamptz[], %(reasons)s::text[], %(versions)s::int[],
        %(aborts_at)s::timestamptz[])
    AS c (id, status, payment, stock, payment_at, stock_at, failure_reason, version, aborted_at)
WHERE o.id = c.id;

-- name: items_of
-- The lines of these orders. Parameter: order ids. Index: order_items_pkey.
SELECT order_id, sku, qty, price FROM order_items WHERE order_id = ANY(%(ids)s::text[]) ORDER BY order_id, sku;
