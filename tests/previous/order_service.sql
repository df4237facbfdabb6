-- The order service's statements: what it looks for by the clock.

-- name: oldest_uncompensated
-- Seconds since the oldest abort that is not compensated yet. Index: orders_uncompensated.
SELECT coalesce(extract(epoch FROM now() - min(aborted_at)), 0)::float8
FROM orders
WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released');

-- name: claim_stalled
-- Takes open orders that nothing has happened to for long, and puts their next check off: 30 s doubling to 5 min, with
-- jitter. An order whose event still waits in the outbox is merely queued: it is put off too, but not nudged, so that a
-- run looks at no more rows than it may take. Parameters: rows at most.
-- Index: orders_open, outbox_order_id, then orders_pkey. Skips rows that others hold: something is happening to them.
WITH due AS MATERIALIZED (
    SELECT id, EXISTS (SELECT FROM outbox WHERE outbox.order_id = orders.id) AS queued
    FROM orders
    WHERE status IN ('PROCESSING', 'PAID') AND next_check_at <= now()
    ORDER BY next_check_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), taken AS (
    UPDATE orders o
    SET nudges = o.nudges + CASE WHEN due.queued THEN 0 ELSE 1 END,
        next_check_at = now() + least(%(longest_seconds)s, %(first_seconds)s * 2 ^ least(o.nudges + 1, 20))
                              * (0.75 + random() / 4) * interval '1 second'
    FROM due
    WHERE o.id = due.id
    RETURNING o.id, o.user_id, o.amount, o.currency, o.created_at, o.traceparent, o.tracestate, due.queued
)
SELECT id, user_id, amount, currency, created_at, traceparent, tracestate FROM taken WHERE NOT queued;

-- name: claim_overdue
-- Finds open orders that are past their deadline although they were nudged. Parameters: rows at most, seconds, nudges.
-- Index: orders_open: a nudge has put their next check off, so the whole of it is read, oldest check first.
-- Locks the rows; skips those that others hold: something is happening to them.
SELECT id, traceparent, tracestate FROM orders
WHERE status IN ('PROCESSING', 'PAID') AND nudges >= %(nudges)s
    AND created_at < now() - %(deadline_seconds)s * interval '1 second'
LIMIT %(limit)s
FOR NO KEY UPDATE SKIP LOCKED;

-- name: claim_uncompensated
-- Takes aborted orders of whose payment or stock no end is known for 30 s (what told of it may be lost), and puts their
-- next check off by as long. One of which an event still waits in the outbox is put off only: no abort is queued twice.
-- Parameters: rows at most.
-- Index: orders_uncompensated, outbox_order_id, then orders_pkey. Skips rows that others hold.
WITH due AS MATERIALIZED (
    SELECT id, EXISTS (SELECT FROM outbox WHERE outbox.order_id = orders.id) AS queued
    FROM orders
    WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released')
        AND next_check_at <= now()
    ORDER BY next_check_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), taken AS (
    UPDATE orders o
    SET next_check_at = now() + interval '30 seconds' * (0.75 + random() / 4)
    FROM due
    WHERE o.id = due.id
    RETURNING o.id, o.traceparent, o.tracestate, due.queued
)
SELECT id, traceparent, tracestate FROM taken WHERE NOT queued;
