-- The statements of inventory-worker. It alone writes `reservations`. It shares `inventory` with the stock commands and
-- retention.

-- name: reservations_and_payments
-- The reservations of these orders, locked so that each is released once. After them, the payments that are authorized,
-- or were authorized before, with the lines of their orders as a JSON object of SKU and quantity. Both are in one
-- statement, because at low load a round trip costs more than each of the two reads. The payments are those from before
-- the lock. If retention removes an order in between, its new reservation violates the foreign key. Parameter: order ids.
-- Index: reservations_pkey, payments_pkey, order_items_pkey. Locks the reservations in the order of their ids.
WITH recorded AS MATERIALIZED (
    SELECT order_id, state, lines, reason, skus, decided_at
    FROM reservations
    WHERE order_id = ANY(%(ids)b::text[])
    ORDER BY order_id
    FOR UPDATE
)
SELECT order_id, state, lines, reason, skus, decided_at, NULL, NULL
FROM recorded
UNION ALL
SELECT p.order_id, NULL, NULL, NULL, NULL, NULL, p.state, i.lines::text
FROM payments p
CROSS JOIN LATERAL (
    SELECT json_object_agg(sku, qty) AS lines FROM order_items WHERE order_id = p.order_id
) AS i
WHERE p.order_id = ANY(%(ids)b::text[]) AND p.state NOT IN ('PENDING', 'FAILED') AND i.lines IS NOT NULL;

-- name: stock_of
-- The available units of these SKUs. Parameter: SKUs. Index: inventory_pkey. Locks the rows in the order of the SKUs,
-- so that two batches with the same SKUs cannot deadlock.
SELECT sku, available
FROM inventory
WHERE sku = ANY(%(skus)b::text[])
ORDER BY sku
FOR NO KEY UPDATE;

-- name: release
-- Releases reservations. Parameters: order ids and the reasons of their aborts.
-- Index: reservations_pkey. The rows are locked already (reservations_and_payments).
UPDATE reservations r
SET state = 'RELEASED', reason = a.reason, decided_at = now()
FROM unnest(%(ids)s::text[], %(reasons)s::text[]) AS a (order_id, reason)
WHERE r.order_id = a.order_id AND r.state <> 'RELEASED'
RETURNING r.order_id, r.decided_at;

-- name: record_reservations
-- Records reservations of orders that have none, and moves units between available and reserved, with one update for
-- each SKU. A positive quantity reserves, a negative quantity gives back. Returns the inserted reservations.
-- Parameters: a JSON array, sorted by order id; SKUs, quantities. Index: reservations_pkey, inventory_pkey. The rows of
-- `inventory` are locked already (stock_of). If another transaction inserts one of the reservations at the same time,
-- the statement waits and fails with a unique violation. ON CONFLICT would add a record to the WAL for each row.
WITH moved AS (
    UPDATE inventory i
    SET available = i.available - m.quantity, reserved = i.reserved + m.quantity
    FROM unnest(%(skus)s::text[], %(quantities)s::bigint[]) AS m (sku, quantity)
    WHERE i.sku = m.sku
)
INSERT INTO reservations (order_id, state, lines, reason, skus)
SELECT d.order_id, d.state, d.lines, d.reason, d.skus
FROM json_to_recordset(%(reservations)s::json)
    AS d (order_id text, state text, lines jsonb, reason text, skus text[])
RETURNING order_id, decided_at;

-- name: create_sku
-- Stock command: creates a SKU without units. Returns no row if it exists. Parameter: SKU. Index: inventory_pkey.
INSERT INTO inventory (sku) VALUES (%(sku)s) ON CONFLICT (sku) DO NOTHING RETURNING sku;

-- name: lock_sku
-- Stock command: the units of a SKU. Parameter: SKU. Index: inventory_pkey. Locks the row.
SELECT available, reserved FROM inventory WHERE sku = %(sku)s FOR NO KEY UPDATE;

-- name: set_available
-- Stock command: sets the available units of a SKU. The reserved units stay. Parameters: SKU, units.
-- Index: inventory_pkey. The row is locked already (lock_sku).
UPDATE inventory SET available = %(units)s WHERE sku = %(sku)s;
