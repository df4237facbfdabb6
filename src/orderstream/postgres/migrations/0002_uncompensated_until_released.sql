-- An aborted order is undone when inventory has said so, not when nothing is known of its stock: a reservation whose
-- event was lost with its topic would be held for ever.
DROP INDEX orders_uncompensated;
CREATE INDEX orders_uncompensated ON orders (next_check_at)
    WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released');
