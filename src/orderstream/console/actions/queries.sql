-- The record of what operators did. Rows are added before an action begins, and completed when it ends.

-- name: begin_action
-- Adds an action that begins now, and returns its id. Locks only the new row.
INSERT INTO operator_actions (actor, kind, subject, reason, parameters)
VALUES (%(actor)s, %(kind)s, %(subject)s, %(reason)s, %(parameters)s::jsonb)
RETURNING id;

-- name: end_interrupted
-- Ends the exclusive action of a kind whose console ended before it. Parameters: kind, result.
-- Index: operator_actions_exclusive. Locks its row.
UPDATE operator_actions
SET state = 'failed', result = %(result)s::jsonb, finished_at = now()
WHERE kind = %(kind)s AND is_exclusive AND state = 'running' AND lease_until < now();

-- name: begin_exclusive
-- Adds an action of a kind of which at most one runs. Returns no row if one runs already.
-- Index: operator_actions_exclusive. Locks only the new row.
INSERT INTO operator_actions (actor, kind, subject, reason, parameters, is_exclusive, lease_until)
VALUES (%(actor)s, %(kind)s, %(subject)s, %(reason)s, %(parameters)s::jsonb, TRUE,
        now() + %(lease_seconds)s * interval '1 second')
ON CONFLICT (kind) WHERE state = 'running' AND is_exclusive DO NOTHING
RETURNING id;

-- name: renew_action
-- Extends the lease of a running action and stores how far it is. Returns who cancelled it, and no row if it has ended.
-- Index: operator_actions_pkey. Locks the row.
UPDATE operator_actions
SET lease_until = now() + %(lease_seconds)s * interval '1 second', progress = %(progress)s::jsonb
WHERE id = %(id)s AND state = 'running'
RETURNING cancelled_by;

-- name: cancel_action
-- Asks the console that works on the running action of an exclusive kind to stop it. Returns its id.
-- Parameters: kind, actor. Index: operator_actions_exclusive. Locks the row.
UPDATE operator_actions
SET cancelled_by = coalesce(cancelled_by, %(actor)s)
WHERE kind = %(kind)s AND is_exclusive AND state = 'running' AND lease_until > now()
RETURNING id;

-- name: finish_action
-- Stores the result of an action. An action that has a result keeps it. Index: operator_actions_pkey.
UPDATE operator_actions
SET state = %(state)s, result = %(result)s::jsonb, finished_at = now()
WHERE id = %(id)s AND state = 'running';

-- name: remove_old_actions
-- Removes all but the newest 100,000 actions, with the rights of the owner of the table.
-- Index: operator_actions_pkey. Locks the removed rows.
SELECT remove_old_operator_actions();

-- name: actions_page
-- The newest actions before an id that have this kind (or a kind that begins with it and a dot), subject and actor. NULL
-- stands for any. Reads at most the rows that are kept. Index: operator_actions_pkey, operator_actions_subject or
-- operator_actions_kind. No lock.
SELECT id, at, actor, kind, subject, reason, parameters,
       CASE WHEN state = 'running' AND lease_until < now() THEN 'interrupted' ELSE state END,
       result, progress, finished_at, cancelled_by
FROM operator_actions
WHERE id < %(before)s
  AND (%(kind)s::text IS NULL OR kind = %(kind)s OR starts_with(kind, %(kind)s || '.'))
  AND (%(subject)s::text IS NULL OR subject = %(subject)s)
  AND (%(actor)s::text IS NULL OR actor = %(actor)s)
ORDER BY id DESC
LIMIT %(limit)s;

-- name: action_with_id
-- One action. Index: operator_actions_pkey. No lock.
SELECT id, at, actor, kind, subject, reason, parameters,
       CASE WHEN state = 'running' AND lease_until < now() THEN 'interrupted' ELSE state END,
       result, progress, finished_at, cancelled_by
FROM operator_actions
WHERE id = %(id)s;
