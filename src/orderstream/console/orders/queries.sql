-- The statements of the console's pages and commands for orders. All but the two nudges only read.

-- name: one_snapshot
-- Lets all statements of this transaction see the same rows, so that an order never contradicts the filter that found it.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;

-- name: limit_search
-- Limits each statement of this transaction, rules out plans that read a whole index before they sort, and returns the
-- database's time. Parameter: the limit as text.
SELECT now(), set_config('statement_timeout', %(limit)s, TRUE), set_config('enable_bitmapscan', 'off', TRUE);

-- name: search
-- Reads the next orders of one source and returns those that match a filter: the number of orders read, the smallest id
-- and the time of the oldest of them, and the ids that match, newest first. It never reads more than `rows` orders.
-- The sources `all`, `unsuccessful` (FAILED or CANCELLED) and `reason` (FAILED for one reason) go from the newest order
-- below the id `before` to older ones. The sources `open` and `uncompensated` read the first `rows` of the orders with
-- pending work, in no useful sequence. The caller uses them only if that is all of them.
-- Parameters: source; before; rows; the maximum number of ids; the filter. An empty array or NULL filters nothing.
-- Index: orders_pkey, orders_unsuccessful, orders_failed_by_reason, orders_open, orders_uncompensated,
-- order_items_pkey. Locks: none. Postgres runs only the branch of the given source.
SELECT
    count(*), min(id), min(created_at),
    coalesce((array_agg(id ORDER BY id DESC) FILTER (WHERE
        id < %(before)s
        AND (cardinality(%(statuses)s::text[]) = 0 OR status = ANY(%(statuses)s::text[]))
        AND (%(user_id)s::text IS NULL OR user_id = %(user_id)s)
        AND (%(failure_reason)s::text IS NULL OR failure_reason = %(failure_reason)s)
        AND (%(min_age_seconds)s::float8 IS NULL OR created_at <= now() - %(min_age_seconds)s * interval '1 second')
        AND (%(max_age_seconds)s::float8 IS NULL OR created_at >= now() - %(max_age_seconds)s * interval '1 second')
        AND (NOT %(stuck)s::bool
             OR status IN ('PROCESSING', 'PAID')
                AND (nudges > 0 OR updated_at < now() - %(stuck_seconds)s::float8 * interval '1 second'))
        AND (NOT %(compensating)s::bool
             OR aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released'))
        AND (%(trace_id)s::text IS NULL OR substr(traceparent, 4, 32) = %(trace_id)s)
        AND (%(sku)s::text IS NULL OR EXISTS (SELECT FROM order_items WHERE order_id = part.id AND sku = %(sku)s))
    ))[1:%(matches)s::int], '{}')
FROM (
    (SELECT id, user_id, status, failure_reason, payment, stock, created_at, updated_at, nudges, aborted_at, traceparent
     FROM orders
     WHERE %(source)s::text = 'all' AND id < %(before)s
     ORDER BY id DESC
     LIMIT %(rows)s)
    UNION ALL
    (SELECT id, user_id, status, failure_reason, payment, stock, created_at, updated_at, nudges, aborted_at, traceparent
     FROM orders
     WHERE %(source)s = 'unsuccessful' AND status IN ('FAILED', 'CANCELLED') AND id < %(before)s
     ORDER BY id DESC
     LIMIT %(rows)s)
    UNION ALL
    (SELECT id, user_id, status, failure_reason, payment, stock, created_at, updated_at, nudges, aborted_at, traceparent
     FROM orders
     WHERE %(source)s = 'reason' AND status = 'FAILED' AND failure_reason = %(failure_reason)s AND id < %(before)s
     ORDER BY id DESC
     LIMIT %(rows)s)
    UNION ALL
    (SELECT id, user_id, status, failure_reason, payment, stock, created_at, updated_at, nudges, aborted_at, traceparent
     FROM orders
     WHERE %(source)s = 'open' AND status IN ('PROCESSING', 'PAID')
     ORDER BY next_check_at
     LIMIT %(rows)s)
    UNION ALL
    (SELECT id, user_id, status, failure_reason, payment, stock, created_at, updated_at, nudges, aborted_at, traceparent
     FROM orders
     WHERE %(source)s = 'uncompensated'
         AND aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released')
     ORDER BY next_check_at
     LIMIT %(rows)s)
) AS part;

-- name: listed
-- The orders of a page, newest first, with the number of their lines, and with what an open order waits for.
-- Parameter: order ids. Index: orders_pkey, order_items_pkey, payments_pkey, reservations_pkey, outbox_order_id.
-- Locks: none. Money is read as text, so that it keeps its digits.
SELECT
    o.id, o.user_id, o.amount::text, o.currency, o.status, o.failure_reason, o.payment, o.stock,
    o.created_at, o.updated_at, (SELECT count(*) FROM order_items WHERE order_id = o.id), o.nudges,
    o.aborted_at IS NOT NULL AND NOT (o.payment IN ('failed', 'voided') AND o.stock = 'released'),
    (SELECT outbox.id FROM outbox WHERE outbox.order_id = o.id LIMIT 1) IS NOT NULL,
    p.state, p.pending_since IS NOT NULL, p.attempts,
    (SELECT order_id FROM reservations WHERE order_id = o.id) IS NOT NULL
FROM orders o
LEFT JOIN LATERAL (SELECT state, pending_since, attempts FROM payments WHERE order_id = o.id LIMIT 1) p ON TRUE
WHERE o.id = ANY(%(ids)b::text[])
ORDER BY o.id DESC;

-- name: ids_with_beginning
-- The newest orders whose id begins with these characters. Parameters: the beginning; an id behind all of them; the
-- maximum number of rows. Index: orders_pkey. Locks: none.
SELECT id FROM orders WHERE id >= %(first)s AND id < %(behind)s ORDER BY id DESC LIMIT %(rows)s;

-- name: id_of_key
-- The order of an idempotency key. Parameter: the key. Index: orders_idempotency_key. Locks: none.
SELECT id FROM orders WHERE idempotency_key = %(key)s LIMIT 1;

-- name: pending_work
-- What may be brought forward for one order: its status, whether it is not compensated, whether an event of it waits in
-- the outbox, the seconds until the next check, and of its payment the state, whether the customer or the bank has not
-- decided, and the seconds until the next attempt. Parameter: the order id.
-- Index: orders_pkey, outbox_order_id, payments_pkey. Locks: none.
SELECT
    o.status,
    o.aborted_at IS NOT NULL AND NOT (o.payment IN ('failed', 'voided') AND o.stock = 'released'),
    (SELECT outbox.id FROM outbox WHERE outbox.order_id = o.id LIMIT 1) IS NOT NULL,
    extract(epoch FROM o.next_check_at - now())::float8,
    p.state, p.pending_since IS NOT NULL, extract(epoch FROM p.next_attempt_at - now())::float8
FROM orders o
LEFT JOIN LATERAL (SELECT state, pending_since, next_attempt_at FROM payments WHERE order_id = o.id LIMIT 1) p ON TRUE
WHERE o.id = %(id)s
LIMIT 1;

-- name: bring_check_forward
-- Makes the next check of an open or uncompensated order due at once. The watchdog decides what it does then.
-- Parameter: the order id. Index: orders_pkey. Locks the row.
UPDATE orders
SET next_check_at = now()
WHERE id = %(id)s AND next_check_at > now()
    AND (status IN ('PROCESSING', 'PAID')
         OR aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released'))
RETURNING id;

-- name: bring_attempt_forward
-- Makes the next attempt of a payment due at once, if no call of it can be running. A claim sets the next attempt to a
-- time after the end of the longest possible call and a margin. So a call may run only while the next attempt is between
-- `margin` and `claim` seconds away. Parameters: the order id; margin; claim. Index: payments_pkey. Locks the row.
UPDATE payments
SET next_attempt_at = now()
WHERE order_id = %(id)s AND next_attempt_at > now()
    AND (next_attempt_at <= now() + %(margin)s::float8 * interval '1 second'
         OR next_attempt_at > now() + %(claim)s::float8 * interval '1 second')
RETURNING order_id;
