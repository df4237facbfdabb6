-- The order service's statements. It shares the writing of `orders` with the gateway, which inserts them.

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
-- Writes what changed. An abort's time is kept once it is set, so that the abort repeats as itself.
-- Parameters: arrays of equal length. Index: orders_pkey. The rows are locked already (lock_orders).
UPDATE orders o
SET status = c.status, payment = c.payment, stock = c.stock, payment_at = c.payment_at, stock_at = c.stock_at,
    failure_reason = c.failure_reason, version = c.version, updated_at = now(),
    aborted_at = CASE WHEN c.aborted THEN coalesce(o.aborted_at, now()) ELSE o.aborted_at END,
    next_check_at = CASE WHEN c.aborted THEN now() + interval '30 seconds' ELSE o.next_check_at END
FROM unnest(
        %(ids)s::text[], %(statuses)s::text[], %(payments)s::text[], %(stocks)s::text[],
        %(payments_at)s::timestamptz[], %(stocks_at)s::timestamptz[], %(reasons)s::text[], %(versions)s::int[],
        %(aborted)s::bool[])
    AS c (id, status, payment, stock, payment_at, stock_at, failure_reason, version, aborted)
WHERE o.id = c.id;

-- name: oldest_uncompensated
-- Seconds since the oldest abort that is not compensated yet. Index: orders_uncompensated.
SELECT coalesce(extract(epoch FROM now() - min(aborted_at)), 0)::float8
FROM orders
WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock <> 'reserved');
