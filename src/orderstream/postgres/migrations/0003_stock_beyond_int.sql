-- Units beyond INT: `orderstream stock set SKU 2147483647` left no room for what a cancel gives back. Available and
-- reserved units of one SKU are bounded together, so that no move between them can overflow, and so that the sum is exact
-- in JSON. The table is rewritten; it has one short row for each SKU.
ALTER TABLE inventory
    ALTER COLUMN available TYPE BIGINT,
    ALTER COLUMN reserved TYPE BIGINT,
    ADD CONSTRAINT inventory_units_bounded CHECK (available + reserved <= 1000000000000000);

-- A running inventory-worker of the version before has prepared a statement that returns `available` as INT. PostgreSQL
-- would refuse it from now on ("cached plan must not change result type"), and the worker would blame its records. It
-- repeats its batch on a new connection when the old one ends, so its connections end here.
DO $$
BEGIN
    PERFORM pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'inventory-worker' AND pid <> pg_backend_pid();
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'restart every inventory-worker: its connections belong to another role and could not be ended';
END
$$;
