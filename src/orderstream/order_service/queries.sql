-- The order service's statements: the orders of a batch with what was decided about them, and what it looks for by the
-- clock. It reads `payments` and `reservations`, and writes neither.

-- name: lock_orders_with_payment_and_stock
-- The orders that a batch touches, as lock_orders returns them, each with its rows of `payments` and `reservations`.
-- Parameter: order ids. Index: orders_pkey, payments_pkey, reservations_pkey; LIMIT keeps a plan made on empty tables
-- from joining in another way. Locks the orders alone, in the order of their ids. An event is published after its
-- decision has committed, so the decision is in this statement's snapshot.
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
-- A time before which nothing was decided that still waits in the outbox. Index: outbox_pkey, behind the floor.
SELECT coalesce(
    (SELECT created_at FROM outbox WHERE id > (SELECT id FROM outbox_floor) ORDER BY outbox.id LIMIT 1), now());

-- name: oldest_uncompensated
-- When the oldest abort was that is not compensated yet, and the database's time. Parameter: time to begin at: while a
-- snapshot is held, dead entries lie before it. Index: orders_uncompensated_since.
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
-- Claims open orders that are due, and schedules their next check. Returns what each is: `overdue`, to be failed; `stalled`,
-- to be nudged; or `waiting`. An order waits while an event of it is in the outbox, or while the workers have not passed
-- the time of what happened to it last: it was accepted, nudged, or a payment or reservation was decided.
-- A stalled order is checked again in 60 s, doubling to 5 min, or at its deadline if it was nudged enough by then. One that
-- waits is checked again after as long as it is old, between 30 s and 5 min. All with jitter.
-- Parameters: the range of times; rows at most; the time that the workers have passed; the watchdog's schedule.
-- Index: orders_open, outbox_order_id, payments_pkey, reservations_pkey, then orders_pkey; each by a subquery that returns
-- a value: an EXISTS may be planned as one that reads all of the other table.
-- Skips rows that others hold: something is happening to them.
WITH due AS MATERIALIZED (
    SELECT id, next_check_at, nudges, extract(epoch FROM now() - created_at)::float8 AS age,
           (SELECT outbox.id FROM outbox WHERE outbox.order_id = orders.id LIMIT 1) IS NOT NULL
           OR greatest(
                  created_at, nudged_at,
                  (SELECT decided_at FROM payments WHERE payments.order_id = orders.id),
                  (SELECT decided_at FROM reservations WHERE reservations.order_id = orders.id)
              ) >= %(passed)s AS waits
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
-- Claims aborted orders that are due and not yet compensated, and schedules their next check in 22 to 30 s. Returns for each
-- whether it waits, as claim_stalled does: then no abort is repeated. Parameters: the range of times; rows at most; the
-- time that the workers have passed.
-- Index: orders_uncompensated, outbox_order_id, payments_pkey, reservations_pkey, then orders_pkey.
-- Skips rows that others hold.
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
