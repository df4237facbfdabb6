-- The statements of the api-gateway. Each is one transaction by itself.

-- name: accept_orders
-- Commits a group of orders, each with its items and its first event, and wakes the relay.
-- Parameters: `orders`, a JSON array; `channel`. One JSON text costs the gateway half of what arrays of the same values
-- cost it, and Postgres nothing more.
-- An order that is there already, because a group was repeated whose COMMIT was answered by silence, is left alone with
-- its items and its event: all three hang on the row having been inserted now. A twin still under way is waited for.
-- Index: orders_pkey. Locks: the new rows only.
WITH incoming AS (
    SELECT *
    FROM json_to_recordset(%(orders)s::json) AS t (
        id text, user_id text, amount numeric, currency text, items json, accepted_at timestamptz,
        topic text, event_id uuid, value text, traceparent text, tracestate text
    )
), accepted AS (
    INSERT INTO orders (id, user_id, amount, currency, created_at, updated_at, traceparent, tracestate)
    SELECT id, user_id, amount, currency, accepted_at, accepted_at, traceparent, tracestate FROM incoming
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), lines AS (
    INSERT INTO order_items (order_id, sku, qty, price)
    SELECT id, sku, qty, price
    FROM incoming
    JOIN accepted USING (id)
    CROSS JOIN json_to_recordset(items) AS line (sku text, qty int, price numeric)
), events AS (
    INSERT INTO outbox (topic, order_id, event_id, value, traceparent, tracestate)
    SELECT topic, id, event_id, value, traceparent, tracestate FROM incoming JOIN accepted USING (id)
)
SELECT pg_notify(%(channel)s, '') FROM (SELECT FROM accepted LIMIT 1) AS any_accepted;

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
WHERE o.id = ANY (%(ids)s::text[]);

-- name: check_ready
-- Says whether Postgres answers and is migrated; returns no row. No parameters, no lock.
SELECT FROM orders LIMIT 0;
