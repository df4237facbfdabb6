-- The stock as an operator reads it. inventory-worker has the statements that change it. No block takes a lock.

-- name: stock_page
-- The SKUs after a SKU, from a first one up to but without a last one, in the order of their bytes.
-- Parameters: `first`, `after`, `end`, `limit`. Index: inventory_by_sku.
SELECT sku, available, reserved
FROM inventory
WHERE sku COLLATE "C" >= %(first)s AND sku COLLATE "C" > %(after)s AND sku COLLATE "C" < %(end)s
ORDER BY sku COLLATE "C"
LIMIT %(limit)s;

-- name: stock_containing
-- The SKUs that contain a text in any case, among the `looked` SKUs after a SKU. Each row also has the number of these
-- SKUs and the last of them. Without a match, there is one row without a SKU.
-- Parameters: `text`, `after`, `looked`, `limit`. Index: inventory_by_sku.
WITH looked AS MATERIALIZED (
    SELECT sku, available, reserved
    FROM inventory
    WHERE sku COLLATE "C" > %(after)s
    ORDER BY sku COLLATE "C"
    LIMIT %(looked)s
)
SELECT ends.number, ends.last, found.sku, found.available, found.reserved
FROM (SELECT count(*) AS number, max(sku COLLATE "C") AS last FROM looked) AS ends
LEFT JOIN LATERAL (
    SELECT sku, available, reserved
    FROM looked
    WHERE strpos(lower(sku), lower(%(text)s)) > 0
    ORDER BY sku COLLATE "C"
    LIMIT %(limit)s
) AS found ON TRUE
ORDER BY found.sku COLLATE "C";

-- name: stock_of_sku
-- The units of one SKU. Parameter: SKU. Index: inventory_pkey.
SELECT sku, available, reserved FROM inventory WHERE sku = %(sku)s;
