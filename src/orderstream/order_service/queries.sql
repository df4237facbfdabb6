-- The order service's statements: what it looks for by the clock.

-- name: oldest_uncompensated
-- Seconds since the oldest abort that is not compensated yet. Index: orders_uncompensated.
SELECT coalesce(extract(epoch FROM now() - min(aborted_at)), 0)::float8
FROM orders
WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock <> 'reserved');

-- name: claim_stalled
-- Takes open orders that nothing has happened to for long, and puts their next check off: 30 s doubling to 5 min, with
-- jitter. An order whose event still waits in the outbox is merely queued. Parameters: rows at most.
-- Index: orders_open, outbox_order_id, then orders_pkey. Skips rows that others hold: something is happening to them.
UPDATE orders o
SET nudges = o.nudges + 1,
    next_check_at = now() + least(%(longest_seconds)s, %(first_seconds)s * 2 ^ least(o.nudges + 1, 20))
                          * (0.75 + random() / 4) * interval '1 second'
WHERE o.id = ANY(ARRAY(
    SELECT id FROM orders
    WHERE status IN ('PROCESSING', 'PAID') AND next_check_at <= now()
        AND NOT EXISTS (SELECT FROM outbox WHERE outbox.order_id = orders.id)
    ORDER BY next_check_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED))
RETURNING o.id, o.user_id, o.amount, o.currency, o.created_at, o.traceparent, o.tracestate;

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
-- Takes aborted orders whose payment or stock has not answered for 30 s, and puts their next check off by as long.
-- Parameters: rows at most. Index: orders_uncompensated, then orders_pkey. Skips rows that others hold.
UPDATE orders o
SET next_check_at = now() + interval '30 seconds' * (0.75 + random() / 4)
WHERE o.id = ANY(ARRAY(
    SELECT id FROM orders
    WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock <> 'reserved')
        AND next_check_at <= now()
    ORDER BY next_check_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED))
RETURNING o.id, o.traceparent, o.tracestate;
