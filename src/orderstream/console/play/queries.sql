-- What came of the orders that the play desk placed. No block takes a lock.

-- name: play_settled
-- Those of these orders that are settled, with the seconds until then. An abort is when the order was settled, because a
-- compensation changes the order again later. Parameter: order ids, 1,000 at most. Index: orders_pkey.
SELECT id, status, coalesce(failure_reason, ''), extract(epoch FROM coalesce(aborted_at, updated_at) - created_at)::float8
FROM orders
WHERE id = ANY(%(ids)s::text[]) AND status IN ('CONFIRMED', 'FAILED', 'CANCELLED')
LIMIT 1000;

-- name: play_stock
-- The available units of these SKUs. Parameter: SKUs. Index: inventory_pkey.
SELECT sku, available FROM inventory WHERE sku = ANY(%(skus)s::text[]) LIMIT 1000;
