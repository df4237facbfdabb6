-- The record of what operators did. Rows are added before an action begins, and completed when it ends.

-- name: begin_action
-- Adds an action that begins now, and returns its id. Locks only the new row.
INSERT INTO operator_actions (actor, kind, subject, reason, parameters)
VALUES (%(actor)s, %(kind)s, %(subject)s, %(reason)s, %(parameters)s::jsonb)
RETURNING id;

-- name: finish_action
-- Stores the result of an action. An action that has a result keeps it. Index: operator_actions_pkey.
UPDATE operator_actions
SET state = %(state)s, result = %(result)s::jsonb, finished_at = now()
WHERE id = %(id)s AND state = 'running';
