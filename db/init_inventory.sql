-- The stock that the examples order from. `orderstream up` runs this when it finds no stock at all; by hand it may be run at any time:
-- it sets what is available of SKU-1 and leaves what is reserved alone.
CREATE TABLE IF NOT EXISTS inventory (
  sku TEXT PRIMARY KEY,
  available BIGINT NOT NULL DEFAULT 0,
  reserved  BIGINT NOT NULL DEFAULT 0
);
INSERT INTO inventory (sku, available, reserved)
VALUES ('SKU-1', 100, 0)
ON CONFLICT (sku) DO UPDATE SET available = EXCLUDED.available;
