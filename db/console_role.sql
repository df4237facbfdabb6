-- The rights of the console's role in PostgreSQL. Run this file as the owner of the tables, after each `orderstream
-- migrate`. `orderstream up` runs it at every start. It can be repeated: it first takes all rights back.
--
-- The role reads every table. It writes only the tables and columns that its actions need. It
-- deletes only rows of the index of dead letters, which is a copy of what Kafka has.
-- docs/operations.md says how to create the role on your own server.
BEGIN;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM console;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM console;
GRANT USAGE ON SCHEMA public TO console;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO console;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO console;

-- The record of what operators do: a row is added before an action, and completed after it.
GRANT INSERT (actor, kind, subject, reason, parameters, is_exclusive, lease_until),
    UPDATE (state, result, finished_at, lease_until, progress, cancelled_by) ON operator_actions TO console;
-- "Nudge": brings the next check of an order, and the next attempt of its payment, forward.
GRANT UPDATE (next_check_at) ON orders TO console;
GRANT UPDATE (next_attempt_at) ON payments TO console;
-- Stock: sets or adds available units of a SKU. Only inventory-worker changes the reserved units.
GRANT INSERT (sku, available), UPDATE (available) ON inventory TO console;
-- Dead letters: the index that the console fills from Kafka, and the jobs that redrive or discard letters.
GRANT INSERT, UPDATE, DELETE ON dead_letters TO console;
GRANT INSERT, UPDATE ON dead_letter_positions, dead_letter_jobs, dead_letter_actions TO console;
COMMIT;
