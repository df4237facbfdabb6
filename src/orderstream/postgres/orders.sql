-- Orders as rows. Every change of an order that exists uses these statements.

-- name: lock_orders
-- The orders of a batch, with the time of the transaction. Parameter: order ids. Index: orders_pkey.
-- Locks the rows in the order of their ids, so that two processes cannot deadlock.
SELECT id, status, payment, stock, payment_at, stock_at, failure_reason, version,
       user_id, amount, currency, created_at, updated_at, aborted_at, now()
FROM orders
WHERE id = ANY(%(ids)b::text[])
ORDER BY id
FOR NO KEY UPDATE;

-- name: update_orders
-- Writes changed orders, with the time of the transaction, or of their last change if the database's clock stepped
-- back. The watchdog checks them in 30 s at the earliest.
-- Parameter: a JSON array, which costs the caller a third of arrays with the same values. Index: orders_pkey. The array
-- of ids makes a plan use it that was made on an empty table. The rows are locked already (lock_orders).
WITH c AS MATERIALIZED (
    SELECT *
    FROM json_to_recordset(%(orders)s::json) AS t (
        id text, status text, payment text, stock text, version int, payment_at timestamptz, stock_at timestamptz,
        failure_reason text, aborted_at timestamptz
    )
)
UPDATE orders o
SET status = c.status, payment = c.payment, stock = c.stock, payment_at = c.payment_at, stock_at = c.stock_at,
    failure_reason = c.failure_reason, version = c.version, updated_at = greatest(now(), o.updated_at),
    aborted_at = c.aborted_at,
    next_check_at = now() + interval '30 seconds'
FROM c
WHERE o.id = ANY(ARRAY(SELECT id FROM c)) AND o.id = c.id;

-- name: items_of
-- The lines of these orders. Parameter: order ids. Index: order_items_pkey.
SELECT order_id, sku, qty, price FROM order_items WHERE order_id = ANY(%(ids)b::text[]) ORDER BY order_id, sku;

-- name: aborts_of
-- Whether these orders are aborted, and why they failed. Parameter: order ids. Index: orders_pkey. Locks: none, because
-- an abort is final.
SELECT id, aborted_at IS NOT NULL, failure_reason FROM orders WHERE id = ANY(%(ids)b::text[]);
