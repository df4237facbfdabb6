-- no transaction
-- The two gauges of what should be undone and is not: each reads one row, however many wait.
CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_uncompensated_since ON orders (aborted_at)
    WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released');
CREATE INDEX CONCURRENTLY IF NOT EXISTS payments_voiding_since ON payments (decided_at) WHERE state = 'VOIDING';
