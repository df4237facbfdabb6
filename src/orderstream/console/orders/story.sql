-- What PostgreSQL stores about one order. The statements only read, and take no lock.

-- name: one_snapshot
-- Makes the following statements of the transaction see the same state of the database.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;

-- name: story_order
-- An order, and the database's time. Parameter: the order id. Index: orders_pkey.
SELECT id, user_id, amount, currency, status, failure_reason, version, created_at, updated_at, payment, payment_at, stock,
       stock_at, next_check_at, nudges, nudged_at, aborted_at, idempotency_key, traceparent, tracestate, now()
FROM orders
WHERE id = %(id)s
LIMIT 1;

-- name: story_payment
-- The payment of an order. Parameter: the order id. Index: payments_pkey.
SELECT state, amount, reason, attempts, next_attempt_at, pending_since, decided_at, closed_at, traceparent, tracestate
FROM payments
WHERE order_id = %(id)s
LIMIT 1;

-- name: story_reservation
-- The reservation of an order, with at most `limit` of its lines as a JSON object of SKU and quantity, and their number.
-- Parameters: the order id; the limit. Index: reservations_pkey.
SELECT state,
       (SELECT coalesce(json_object_agg(key, value), '{}')
        FROM (SELECT key, value FROM jsonb_each(lines) ORDER BY key LIMIT %(limit)s) AS shown),
       (SELECT count(*) FROM jsonb_object_keys(lines)),
       reason, skus[:%(limit)s::int], decided_at
FROM reservations
WHERE order_id = %(id)s
LIMIT 1;

-- name: story_lines
-- The first lines of an order, in the order of their SKUs. Parameters: the order id; the limit.
-- Index: order_items_pkey.
SELECT sku, qty, price
FROM order_items
WHERE order_id = %(id)s
ORDER BY sku
LIMIT %(limit)s;

-- name: story_outbox
-- The events of an order that are not published yet, the oldest first. Parameters: the order id; the limit.
-- Index: outbox_order_id.
SELECT id, topic, event_id::text, value, traceparent, created_at
FROM outbox
WHERE order_id = %(id)s
ORDER BY id
LIMIT %(limit)s;

-- name: story_actions
-- What operators did to an order: the newest actions. Parameters: the order id; the limit.
-- Index: operator_actions_subject.
SELECT id, at, actor, kind, reason, state, result::text, finished_at
FROM operator_actions
WHERE subject = %(id)s
ORDER BY id DESC
LIMIT %(limit)s;

-- name: story_dead_letters
-- The dead letters of an order, the newest first. Parameters: the order id; the limit. Index: dead_letters_order_id.
SELECT service, partition, "offset", at, reason, source_topic, source_partition, source_offset, error, tries, state,
       state_at
FROM dead_letters
WHERE order_id = %(id)s
ORDER BY id DESC
LIMIT %(limit)s;
