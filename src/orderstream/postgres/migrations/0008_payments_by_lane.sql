-- no transaction
-- When the provider first answered that the customer or the bank has not decided yet.
ALTER TABLE payments ADD COLUMN IF NOT EXISTS pending_since TIMESTAMPTZ;
-- The attempts that are due, by lane, so that one lane never waits for the rows of another. A state of a newer
-- version has no lane. payments_due stays for workers of the previous version. A later version drops it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payments_due_by_lane ON payments (
    (CASE WHEN state = 'PENDING' THEN 'retry'
          WHEN state = 'VOIDING' AND attempts = 0 THEN 'void'
          WHEN state = 'VOIDING' THEN 'void_retry' END), next_attempt_at)
    WHERE next_attempt_at IS NOT NULL;
