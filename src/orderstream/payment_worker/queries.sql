-- The statements of payment-worker. It alone writes `payments`. It reads `orders` and `order_items`.

-- name: accepted
-- These orders as they were accepted, with their lines as JSON. Also says whether an order is too old to be authorized,
-- and whether it has a payment. Parameters: order ids; the maximum age in seconds.
-- Index: orders_pkey, order_items_pkey, payments_pkey. Locks: none, because the insert decides.
-- Concatenating the JSON as text costs half as much as json_agg.
SELECT o.id, o.amount, o.currency, o.created_at,
       (SELECT concat('[', string_agg(
                   concat('{"sku":', to_json(sku), ',"qty":', qty, ',"price":"', price, '"}'), ',' ORDER BY sku), ']')
        FROM order_items WHERE order_id = o.id),
       o.created_at < now() - %(oldest_seconds)s * interval '1 second',
       (SELECT p.order_id FROM payments p WHERE p.order_id = o.id) IS NOT NULL
FROM orders o
WHERE o.id = ANY(%(ids)b::text[]);

-- name: insert_payments
-- Records first outcomes and tombstones. Returns the inserted rows: an order that has a payment already is left out.
-- Parameter: a JSON array, sorted by order id. Index: payments_pkey.
INSERT INTO payments (order_id, state, amount, reason, attempts, next_attempt_at, traceparent, tracestate, pending_since)
SELECT d.order_id, d.state, d.amount, d.reason, d.attempts, now() + d.delay * interval '1 second',
       d.traceparent, d.tracestate, CASE WHEN d.is_pending THEN now() END
FROM json_to_recordset(%(payments)s::json)
    AS d (order_id text, state text, amount numeric, reason text, attempts int, delay float8,
          traceparent text, tracestate text, is_pending boolean)
ON CONFLICT (order_id) DO NOTHING
RETURNING order_id, state, reason, decided_at;

-- name: begin_voids
-- Turns payments into VOIDING, due at once, if they are in one of the states `from_states`.
-- Parameters: arrays of equal length; the states. Index: payments_pkey. Locks the rows in the order of their ids.
UPDATE payments p
SET state = 'VOIDING', reason = coalesce(a.reason, p.reason), attempts = 0, next_attempt_at = now(),
    decided_at = now(), traceparent = a.traceparent, tracestate = a.tracestate,
    closed_at = CASE WHEN p.state IN ('FAILED', 'VOIDED') THEN coalesce(p.closed_at, p.decided_at) END
FROM unnest(%(ids)s::text[], %(reasons)s::text[], %(traceparents)s::text[], %(tracestates)s::text[])
    AS a (order_id, reason, traceparent, tracestate)
WHERE p.order_id = ANY(ARRAY(
        SELECT order_id FROM payments WHERE order_id = ANY(%(ids)s::text[]) ORDER BY order_id FOR NO KEY UPDATE))
    AND p.order_id = a.order_id AND p.state = ANY(%(from_states)s::text[]);

-- name: payments_of
-- The payments of these orders. Parameter: order ids. Index: payments_pkey. Locks: none. Runs after the inserts, as a
-- separate statement, so that it sees the rows of concurrent transactions that inserted first.
SELECT order_id, state, reason, decided_at FROM payments WHERE order_id = ANY(%(ids)b::text[]);

-- name: now
-- The database's time.
SELECT now();

-- name: claim_due
-- Claims the attempts of a lane that are due in a range of times, by moving their due time beyond the longest call. If
-- the worker dies, the attempts become due again. Parameters: the lane; the range of times; the maximum number of rows;
-- seconds to move; the age in seconds beyond which no order is authorized. While a snapshot is held, dead entries lie
-- before the range.
-- Index: payments_due_by_lane, then payments_pkey and orders_pkey. Skips rows that other transactions have locked.
WITH due AS MATERIALIZED (
    SELECT order_id, next_attempt_at
    FROM payments
    WHERE (CASE WHEN state = 'PENDING' THEN 'retry'
                WHEN state = 'VOIDING' AND attempts = 0 THEN 'void'
                WHEN state = 'VOIDING' THEN 'void_retry' END) = %(lane)s
        AND next_attempt_at > %(after)s AND next_attempt_at <= %(upto)s
    ORDER BY next_attempt_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
UPDATE payments p
SET next_attempt_at = now() + %(push_seconds)s * interval '1 second'
FROM due, orders o
WHERE p.order_id = ANY(ARRAY(SELECT order_id FROM due)) AND p.order_id = due.order_id AND o.id = p.order_id
RETURNING p.order_id, p.state, p.reason, p.attempts, o.amount, o.currency, o.created_at, p.traceparent, p.tracestate,
    o.created_at < now() - %(oldest_seconds)s * interval '1 second',
    extract(epoch FROM now() - p.pending_since)::float8, due.next_attempt_at;

-- name: bring_forward
-- Makes payments that wait for the customer or the bank due at once. Does not change other payments.
-- Parameter: order ids. Index: payments_pkey. Locks the rows in the order of their ids.
UPDATE payments
SET next_attempt_at = now()
WHERE order_id = ANY(ARRAY(
        SELECT order_id FROM payments WHERE order_id = ANY(%(ids)b::text[]) ORDER BY order_id FOR NO KEY UPDATE))
    AND state = 'PENDING' AND pending_since IS NOT NULL AND next_attempt_at > now();

-- name: oldest_voiding
-- The time at which the oldest payment that is still VOIDING became VOIDING, and the database's time. Parameter: the
-- time to begin at. While a snapshot is held, dead entries lie before it. Index: payments_voiding_since.
SELECT (
    SELECT decided_at FROM payments WHERE state = 'VOIDING' AND decided_at >= %(after)s ORDER BY decided_at LIMIT 1
), now();

-- name: finish_attempts
-- Records the outcome of attempts. An attempt is left out if its payment has another state than when the attempt began.
-- A payment that is voided again keeps the time of its first end, so that its event is repeated exactly.
-- Parameter: a JSON array. Index: payments_pkey. Without the array of ids, a plan made while the table is empty would
-- use a hash join and always read the whole table. Locks the rows in the order of their ids.
WITH d AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(attempts)s::json)
        AS d (order_id text, began text, state text, reason text, attempts int, amount numeric, delay float8,
              is_pending boolean)
)
UPDATE payments p
SET state = d.state, reason = d.reason, attempts = d.attempts, amount = coalesce(d.amount, p.amount),
    next_attempt_at = now() + d.delay * interval '1 second',
    decided_at = CASE WHEN d.state IN ('FAILED', 'VOIDED') THEN coalesce(p.closed_at, now())
                      WHEN d.state = p.state THEN p.decided_at
                      ELSE now() END,
    closed_at = CASE WHEN d.state IN ('FAILED', 'VOIDED') THEN coalesce(p.closed_at, now()) ELSE p.closed_at END,
    pending_since = CASE WHEN d.is_pending THEN coalesce(p.pending_since, now()) ELSE p.pending_since END
FROM d
WHERE p.order_id = ANY(ARRAY(
        SELECT order_id FROM payments
        WHERE order_id = ANY(ARRAY(SELECT order_id FROM d))
        ORDER BY order_id
        FOR NO KEY UPDATE))
    AND p.order_id = d.order_id AND p.state = d.began
RETURNING p.order_id, p.state, p.reason, p.decided_at, p.traceparent, p.tracestate;

-- name: void_late_authorizations
-- Turns ended payments into VOIDING again: the provider authorized an attempt after the payment had ended.
-- Parameter: order ids. Index: payments_pkey. Locks the rows in the order of their ids.
UPDATE payments
SET state = 'VOIDING', attempts = 0, next_attempt_at = now(), decided_at = now(),
    closed_at = coalesce(closed_at, decided_at)
WHERE order_id = ANY(ARRAY(
        SELECT order_id FROM payments WHERE order_id = ANY(%(ids)b::text[]) ORDER BY order_id FOR NO KEY UPDATE))
    AND state IN ('VOIDED', 'FAILED');
