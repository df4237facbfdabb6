-- The statements of order-service: the orders of a batch with their payments and reservations, and the orders that its
-- timers look for. It reads `payments` and `reservations`, and writes neither.

-- name: lock_orders_with_payment_and_stock
-- The orders of a batch, as lock_orders returns them, each with its rows of `payments` and `reservations`.
-- Parameter: order ids. Index: orders_pkey, payments_pkey, reservations_pkey. LIMIT prevents another join in a plan
-- that was made on empty tables. Locks only the orders, in the order of their ids. A worker publishes an event after it
-- has committed the payment or reservation, so this statement's snapshot contains it.
SELECT o.id, o.status, o.payment, o.stock, o.payment_at, o.stock_at, o.failure_reason, o.version,
       o.user_id, o.amount, o.currency, o.created_at, o.updated_at, o.aborted_at, now(),
       p.state, p.decided_at, p.reason, p.closed_at IS NOT NULL, r.state, r.decided_at, r.reason
FROM orders o
LEFT JOIN LATERAL (
    SELECT state, decided_at, reason, closed_at FROM payments WHERE order_id = o.id LIMIT 1
) p ON TRUE
LEFT JOIN LATERAL (
    SELECT state, decided_at, reason FROM reservations WHERE order_id = o.id LIMIT 1
) r ON TRUE
WHERE o.id = ANY(%(ids)b::text[])
ORDER BY o.id
FOR NO KEY UPDATE OF o;

-- name: now
-- The database's time.
SELECT now();

-- name: published_until
-- The time of the oldest event in the outbox, or now: every earlier event is published. Index: outbox_pkey, after the
-- floor.
SELECT coalesce(
    (SELECT created_at FROM outbox WHERE id > (SELECT id FROM outbox_floor) ORDER BY outbox.id LIMIT 1), now());

-- name: oldest_uncompensated
-- The time of the oldest abort that is not compensated yet, and the database's time. Parameter: the time to begin at.
-- While a snapshot is held, dead entries lie before it. Index: orders_uncompensated_since.
SELECT (
    SELECT aborted_at
    FROM orders
    WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released')
        AND aborted_at >= %(after)s
    ORDER BY aborted_at
    LIMIT 1
), now();

-- name: any_stalled
-- Says whether an open order is due. Parameters: the range of times. Index: orders_open.
SELECT id FROM orders
WHERE status IN ('PROCESSING', 'PAID') AND next_check_at > %(after)s AND next_check_at <= %(upto)s
ORDER BY next_check_at
LIMIT 1;

-- name: claim_stalled
-- Claims open orders that are due, and schedules their next check. Returns the state of each: `overdue` (the watchdog
-- fails it), `stalled` (the watchdog nudges it) or `waiting`. An order waits while an event of it is in the outbox, or
-- while the workers have not passed the time of its last change: it was accepted or nudged, or its payment or
-- reservation changed. It also waits while the provider waits for the customer or the bank, for `pending_seconds` at
-- most.
-- A stalled order is checked again in 60 s, doubling to 5 min, or at its deadline if it was nudged often enough by
-- then. A waiting order is checked again after a time equal to its age, between 30 s and 5 min. All times have jitter.
-- Parameters: the range of times; the maximum number of rows; the time that the workers have passed; the schedule.
-- Index: orders_open, outbox_order_id, payments_pkey, reservations_pkey, then orders_pkey. Each subquery returns a
-- value, because an EXISTS may be planned as a join that reads the whole other table.
-- Skips rows that other transactions have locked, because they are changing these orders.
WITH due AS MATERIALIZED (
    SELECT id, next_check_at, nudges, extract(epoch FROM now() - created_at)::float8 AS age,
           (SELECT outbox.id FROM outbox WHERE outbox.order_id = orders.id LIMIT 1) IS NOT NULL
           OR greatest(
                  created_at, nudged_at,
                  (SELECT decided_at FROM payments WHERE payments.order_id = orders.id),
                  (SELECT decided_at FROM reservations WHERE reservations.order_id = orders.id)
              ) >= %(passed)s
           OR coalesce((SELECT state = 'PENDING' AND pending_since > now() - %(pending_seconds)s * interval '1 second'
                        FROM payments WHERE payments.order_id = orders.id), FALSE) AS waits
    FROM orders
    WHERE status IN ('PROCESSING', 'PAID') AND next_check_at > %(after)s AND next_check_at <= %(upto)s
    ORDER BY next_check_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), judged AS (
    SELECT id, next_check_at, age, waits,
           NOT waits AND nudges >= %(deadline_nudges)s AND age > %(deadline_seconds)s AS overdue,
           least(%(longest_seconds)s, %(first_seconds)s * 2 ^ least(nudges + 1, 20)) AS backoff,
           nudges + 1 >= %(deadline_nudges)s AS nudged_enough
    FROM due
), taken AS (
    UPDATE orders o
    SET nudges = o.nudges + CASE WHEN waits OR overdue THEN 0 ELSE 1 END,
        nudged_at = CASE WHEN waits OR overdue THEN o.nudged_at ELSE now() END,
        next_check_at = now() + (0.75 + random() / 4) * interval '1 second' * CASE
            WHEN waits THEN least(%(longest_seconds)s, greatest(%(first_seconds)s, age))
            WHEN nudged_enough THEN least(backoff, greatest(%(first_seconds)s, %(deadline_seconds)s - age))
            ELSE backoff END
    FROM judged
    WHERE o.id = ANY(ARRAY(SELECT id FROM due)) AND o.id = judged.id
    RETURNING o.id, o.user_id, o.amount, o.currency, o.created_at, o.traceparent, o.tracestate,
        CASE WHEN waits THEN 'waiting' WHEN overdue THEN 'overdue' ELSE 'stalled' END AS state,
        judged.next_check_at AS due_at
)
SELECT id, user_id, amount, currency, created_at, traceparent, tracestate, state, due_at FROM taken;

-- name: any_uncompensated
-- Says whether an aborted order is due. Parameters: the range of times. Index: orders_uncompensated.
SELECT id FROM orders
WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released')
    AND next_check_at > %(after)s AND next_check_at <= %(upto)s
ORDER BY next_check_at
LIMIT 1;

-- name: claim_uncompensated
-- Claims aborted orders that are due and not yet compensated, and schedules their next check in 22 to 30 s. Says for
-- each whether it waits, by the rule of claim_stalled. The watchdog repeats no abort of a waiting order. Parameters:
-- the range of times; the maximum number of rows; the time that the workers have passed.
-- Index: orders_uncompensated, outbox_order_id, payments_pkey, reservations_pkey, then orders_pkey.
-- Skips rows that other transactions have locked.
WITH due AS MATERIALIZED (
    SELECT id, next_check_at,
           (SELECT outbox.id FROM outbox WHERE outbox.order_id = orders.id LIMIT 1) IS NOT NULL
           OR greatest(
                  aborted_at, nudged_at,
                  (SELECT decided_at FROM payments WHERE payments.order_id = orders.id),
                  (SELECT decided_at FROM reservations WHERE reservations.order_id = orders.id)
              ) >= %(passed)s AS waits
    FROM orders
    WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released')
        AND next_check_at > %(after)s AND next_check_at <= %(upto)s
    ORDER BY next_check_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), taken AS (
    UPDATE orders o
    SET nudged_at = CASE WHEN waits THEN o.nudged_at ELSE now() END,
        next_check_at = now() + interval '30 seconds' * (0.75 + random() / 4)
    FROM due
    WHERE o.id = ANY(ARRAY(SELECT id FROM due)) AND o.id = due.id
    RETURNING o.id, o.traceparent, o.tracestate, due.waits, due.next_check_at AS due_at
)
SELECT id, traceparent, tracestate, waits, due_at FROM taken;
