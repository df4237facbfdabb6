-- no transaction
-- The orders that an operator looks for. An order that goes well is in none of these indexes, so it costs nothing.
CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_unsuccessful ON orders (id) WHERE status IN ('FAILED', 'CANCELLED');
CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_failed_by_reason ON orders (failure_reason, id) WHERE status = 'FAILED';
