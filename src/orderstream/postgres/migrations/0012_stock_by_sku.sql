-- The stock in the order of the bytes of its SKUs, for the list and for the search by the first characters. The primary
-- key has the collation of the database, which may compare by other rules. The table has one short row for each SKU.
CREATE INDEX inventory_by_sku ON inventory (sku COLLATE "C");
