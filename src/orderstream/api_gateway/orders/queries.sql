-- The statements of the api-gateway. Each one is a transaction of its own.

-- name: accept_orders
-- Commits a group of orders, each with its items and its first event, and wakes the relay.
-- Parameters: `orders`, a JSON array; `topic`; `envelope`, the JSON of an event with four gaps; `channel`. One JSON text
-- takes the gateway half the time of arrays with the same values, and takes Postgres no more time. The payload of the
-- event is in it once: the columns of the order and its items are read from it, and its text is copied into the event.
-- Postgres sets the time of an order: created_at, updated_at, and occurredAt of the event. The clock of a gateway never
-- decides the age of an order.
-- If a COMMIT got no answer, the gateway repeats the group. The statement then skips each order that exists, with its
-- items and its event, because it inserts them only for rows of `accepted`. In the same way it skips an order whose
-- idempotency key is taken. If another transaction is inserting the same key, the statement waits for it. Orders with
-- keys come first, sorted by key, so that two groups never wait for each other in a deadlock.
-- ON CONFLICT adds a record to the WAL for each row, so only orders with keys use it. The others are looked up first.
-- If the first attempt at a group is still running, the repeated group waits for it, and fails at orders_pkey.
-- Returns one row: the number of orders in the parameter, which proves that this statement ran and no other, and the
-- ids of the accepted orders that have keys.
-- Index: orders_pkey, orders_idempotency_key. Locks: the new rows only.
WITH incoming AS (
    SELECT "orderId" AS id, "userId" AS user_id, amount, currency, items, payload, event_id, traceparent, tracestate,
        idempotency_key, request_hash
    FROM json_to_recordset(%(orders)s::json) AS t (
        payload json, event_id uuid, traceparent text, tracestate text, idempotency_key text, request_hash bytea
    )
    CROSS JOIN json_to_record(payload) AS p ("orderId" text, "userId" text, amount numeric, currency text, items json)
), time AS MATERIALIZED (
    -- The services write times in JSON in the same way: without a fraction that is 0.
    SELECT replace(to_char(now() AT TIME ZONE 'UTC', '"\""YYYY-MM-DD"T"HH24:MI:SS.US"Z\""'), '.000000Z', 'Z') AS quoted
), with_keys AS (
    INSERT INTO orders (
        id, user_id, amount, currency, created_at, updated_at, traceparent, tracestate, idempotency_key, request_hash
    )
    SELECT
        id, user_id, amount, currency, now(), now(), traceparent, tracestate, idempotency_key, request_hash
    FROM incoming
    WHERE idempotency_key IS NOT NULL
    ON CONFLICT DO NOTHING
    RETURNING id
), without_keys AS (
    INSERT INTO orders (id, user_id, amount, currency, created_at, updated_at, traceparent, tracestate)
    SELECT id, user_id, amount, currency, now(), now(), traceparent, tracestate
    FROM incoming
    WHERE idempotency_key IS NULL AND (SELECT stored.id FROM orders AS stored WHERE stored.id = incoming.id) IS NULL
    RETURNING id
), accepted AS (
    SELECT id FROM with_keys
    UNION ALL
    SELECT id FROM without_keys
), lines AS (
    INSERT INTO order_items (order_id, sku, qty, price)
    SELECT id, sku, qty, price
    FROM incoming
    JOIN accepted USING (id)
    CROSS JOIN json_to_recordset(items) AS line (sku text, qty int, price numeric)
), events AS (
    INSERT INTO outbox (topic, order_id, event_id, value, traceparent, tracestate)
    SELECT
        %(topic)s, id, event_id, format(%(envelope)s, event_id, time.quoted, id, payload), traceparent, tracestate
    FROM incoming
    JOIN accepted USING (id)
    CROSS JOIN time
)
SELECT
    (SELECT count(*) FROM incoming),
    (SELECT array_agg(id) FROM with_keys),
    CASE WHEN EXISTS (SELECT FROM accepted) THEN pg_notify(%(channel)s, '') END;

-- name: orders_of_keys
-- Finds the orders of idempotency keys, with the digests of their requests. Parameter: `keys`.
-- This is a separate statement, because a statement that lost to a concurrent insert of the same key cannot see the
-- other row in its snapshot.
-- Index: orders_idempotency_key. Locks: none.
SELECT idempotency_key, id, request_hash FROM orders WHERE idempotency_key = ANY(%(keys)b::text[]);

-- name: read_orders
-- Reads orders with their items, sorted by SKU. Parameter: `ids`. An unknown id has no row.
-- Index: orders_pkey, order_items_pkey. Locks: none. Money is read as text, so that it keeps its digits.
SELECT
    o.id, o.user_id, o.amount::text, o.currency, o.status, o.failure_reason, o.version, o.created_at, o.updated_at,
    o.payment, o.payment_at, o.stock, o.stock_at, i.skus, i.qtys, i.prices
FROM orders AS o
CROSS JOIN LATERAL (
    SELECT
        array_agg(sku ORDER BY sku) AS skus,
        array_agg(qty ORDER BY sku) AS qtys,
        array_agg(price::text ORDER BY sku) AS prices
    FROM order_items
    WHERE order_id = o.id
) AS i
WHERE o.id = ANY(%(ids)b::text[]);

-- name: traces_of
-- The trace contexts of the requests that placed these orders. Parameter: `ids`. Index: orders_pkey. Locks: none. Used
-- only if a request of the batch is recorded.
SELECT id, traceparent, tracestate FROM orders WHERE id = ANY(%(ids)b::text[]);

-- name: settled_of
-- Returns those of the orders that have settled. Parameter: `ids`. Index: orders_pkey. Locks: none.
SELECT id FROM orders WHERE id = ANY(%(ids)b::text[]) AND status NOT IN ('PROCESSING', 'PAID');

-- name: outbox_exceeds
-- Tells whether the outbox holds more rows than `limit`. Parameter: `limit`. Reads at most `limit` + 1 rows. Starts
-- after the id below which the relays expect no rows, because the index may have millions of dead entries there.
-- Index: outbox_pkey, outbox_floor_pkey. Locks: none.
SELECT EXISTS (
    SELECT FROM outbox
    WHERE id > coalesce((SELECT id FROM outbox_floor WHERE only_row), 0)
    ORDER BY id
    OFFSET %(limit)s
    LIMIT 1
);

-- name: check_ready
-- Succeeds if Postgres answers and is migrated. Returns no row. Parameters: none. Locks: none.
SELECT FROM orders LIMIT 0;
