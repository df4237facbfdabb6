-- The relay's statements. Every service appends to `outbox`; only the relay takes rows out.

-- name: claim
-- Takes the oldest rows that no other relay holds; they are gone when the transaction commits, and back when it does
-- not. Parameters: rows at most; bytes of values, which only the last row taken may go beyond.
-- Index: outbox_pkey, for the order and, by the array, for the delete on an empty table too. Skips locked rows: never
-- "id greater than the last", which would pass over a row that commits late.
WITH held AS MATERIALIZED (
    SELECT id, octet_length(value) AS bytes FROM outbox ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), summed AS (
    SELECT id, sum(bytes) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - bytes AS bytes_before FROM held
)
DELETE FROM outbox
WHERE id = ANY(ARRAY(SELECT id FROM summed WHERE bytes_before < %(bytes)s))
RETURNING id, topic, order_id, event_id::text, value, traceparent, tracestate;

-- name: depth
-- How many rows wait, counted up to a limit, and for how many seconds the oldest has. Index: outbox_pkey.
SELECT (SELECT count(*) FROM (SELECT FROM outbox ORDER BY id LIMIT 100000) AS counted),
       coalesce((SELECT extract(epoch FROM now() - created_at) FROM outbox ORDER BY id LIMIT 1), 0)::float8;

-- name: listen
-- Has this connection woken by wake_relay.
LISTEN orderstream_outbox;
