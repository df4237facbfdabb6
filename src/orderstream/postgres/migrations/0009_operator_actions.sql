-- What operators did: one row for each action, written before it begins and completed when it ends.
CREATE TABLE operator_actions (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          TIMESTAMPTZ NOT NULL DEFAULT now(),
    actor       TEXT NOT NULL,
    kind        TEXT NOT NULL,
    -- The order, SKU, process or promise that the action is about.
    subject     TEXT NOT NULL,
    reason      TEXT NOT NULL,
    parameters  JSONB NOT NULL DEFAULT '{}',
    state       TEXT NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'failed', 'cancelled')),
    result      JSONB,
    finished_at TIMESTAMPTZ,
    CONSTRAINT finished_has_a_time CHECK ((state = 'running') = (finished_at IS NULL))
);
CREATE INDEX operator_actions_subject ON operator_actions (subject, id);
CREATE INDEX operator_actions_kind ON operator_actions (kind, id);
