-- The statements of the api-gateway. Each is one transaction by itself.

-- name: accept_orders
-- Commits a group of orders, each with its items and its first event, and wakes the relay.
-- Parameters: `orders`, a JSON array; `channel`. One JSON text costs the gateway half of what arrays of the same values
-- cost it, and Postgres nothing more.
-- The time of an order is Postgres's own: created_at, updated_at, and occurredAt of the event, which is put between the
-- two parts of its JSON. No clock of a gateway decides how old an order is.
-- An order that is there already, because a group was repeated whose COMMIT was answered by silence, is left alone with
-- its items and its event: all three hang on the row having been inserted now. So does one whose idempotency key is
-- taken. A twin still under way is waited for; orders with keys come first and sorted by them, so that two groups never
-- wait for each other crosswise. Returns how many orders came in, which shows that this statement ran and no other, and the
-- ids of the accepted orders that have keys.
-- Index: orders_pkey, orders_idempotency_key. Locks: the new rows only.
WITH incoming AS (
    SELECT *
    FROM json_to_recordset(%(orders)s::json) AS t (
        id text, user_id text, amount numeric, currency text, items json,
        topic text, event_id uuid, value_before_time text, value_after_time text, traceparent text, tracestate text,
        idempotency_key text, request_hash bytea
    )
), time AS MATERIALIZED (
    -- As the services write times in JSON: without a fraction of exactly 0.
    SELECT replace(to_char(now() AT TIME ZONE 'UTC', '"\""YYYY-MM-DD"T"HH24:MI:SS.US"Z\""'), '.000000Z', 'Z') AS quoted
), accepted AS (
    INSERT INTO orders (
        id, user_id, amount, currency, created_at, updated_at, traceparent, tracestate, idempotency_key, request_hash
    )
    SELECT
        id, user_id, amount, currency, now(), now(), traceparent, tracestate, idempotency_key, request_hash
    FROM incoming
    ON CONFLICT DO NOTHING
    RETURNING id, idempotency_key
), lines AS (
    INSERT INTO order_items (order_id, sku, qty, price)
    SELECT id, sku, qty, price
    FROM incoming
    JOIN accepted USING (id)
    CROSS JOIN json_to_recordset(items) AS line (sku text, qty int, price numeric)
), events AS (
    INSERT INTO outbox (topic, order_id, event_id, value, traceparent, tracestate)
    SELECT topic, id, event_id, concat(value_before_time, time.quoted, value_after_time), traceparent, tracestate
    FROM incoming
    JOIN accepted USING (id)
    CROSS JOIN time
)
SELECT
    (SELECT count(*) FROM incoming),
    (SELECT array_agg(id) FROM accepted WHERE idempotency_key IS NOT NULL),
    CASE WHEN EXISTS (SELECT FROM accepted) THEN pg_notify(%(channel)s, '') END;

-- name: orders_of_keys
-- Finds the orders of idempotency keys, and the digests of what was asked for. Parameter: `keys`.
-- It is a statement of its own: the one that lost to a concurrent twin cannot see the twin's row in its snapshot.
-- Index: orders_idempotency_key. Locks: none.
SELECT idempotency_key, id, request_hash FROM orders WHERE idempotency_key = ANY(%(keys)b::text[]);

-- name: read_orders
-- Reads orders with their items, in the order of their SKUs. Parameters: `ids`; unknown ones have no row.
-- Index: orders_pkey, order_items_pkey. Locks: none. Money is read as text, so that its digits stay as they are.
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

-- name: settled_of
-- Finds out which of these orders have settled. Parameter: `ids`. Index: orders_pkey. Locks: none.
SELECT id FROM orders WHERE id = ANY(%(ids)b::text[]) AND status NOT IN ('PROCESSING', 'PAID');

-- name: outbox_exceeds
-- Says whether the outbox holds more rows than `limit`; reads no more than one row beyond. It begins behind the id below
-- which the relays expect none: dead index entries may lie there by the million. Index: outbox_pkey, outbox_floor_pkey.
SELECT EXISTS (
    SELECT FROM outbox
    WHERE id > coalesce((SELECT id FROM outbox_floor WHERE only_row), 0)
    ORDER BY id
    OFFSET %(limit)s
    LIMIT 1
);

-- name: check_ready
-- Says whether Postgres answers and is migrated; returns no row. No parameters, no lock.
SELECT FROM orders LIMIT 0;
