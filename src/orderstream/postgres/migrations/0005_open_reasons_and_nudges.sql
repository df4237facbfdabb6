-- A newer version may give a reason for a failure that this version does not know: it is passed on.
-- When the watchdog repeated an event of the order last: it waits until the workers have passed that repetition.
ALTER TABLE orders
    DROP CONSTRAINT orders_failure_reason_check,
    ADD COLUMN nudged_at TIMESTAMPTZ;
