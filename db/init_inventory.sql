-- The stock of the examples. `orderstream up` runs this file if there is no stock at all. You may run it at any time: it
-- sets the available units of SKU-1 to 100 and does not change the reserved units.
CREATE TABLE IF NOT EXISTS inventory (
  sku TEXT PRIMARY KEY,
  available BIGINT NOT NULL DEFAULT 0,
  reserved  BIGINT NOT NULL DEFAULT 0
);
INSERT INTO inventory (sku, available, reserved)
VALUES ('SKU-1', 100, 0)
ON CONFLICT (sku) DO UPDATE SET available = EXCLUDED.available;
