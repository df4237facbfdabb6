-- Actions that run for a while: until when their console is known to work on them, how far they are, and who cancelled
-- them. A running action whose lease has ended was interrupted by the end of its console.
ALTER TABLE operator_actions
    ADD COLUMN lease_until  TIMESTAMPTZ NOT NULL DEFAULT now() + interval '60 seconds',
    ADD COLUMN progress     JSONB,
    ADD COLUMN cancelled_by TEXT,
    ADD COLUMN is_exclusive BOOLEAN NOT NULL DEFAULT FALSE;
-- Of an exclusive kind, at most one action runs at a time, in all consoles together.
CREATE UNIQUE INDEX operator_actions_exclusive ON operator_actions (kind) WHERE state = 'running' AND is_exclusive;

-- Removes all but the newest 100,000 actions. The console calls it. It may not delete any row of this table otherwise.
CREATE FUNCTION remove_old_operator_actions() RETURNS VOID
    LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT
    AS 'DELETE FROM operator_actions WHERE id <= (SELECT max(id) FROM operator_actions) - 100000';
