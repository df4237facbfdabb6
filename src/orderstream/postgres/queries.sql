-- Statements that every service shares.

-- name: append_to_outbox
-- Adds events, in the order given. Parameters: arrays of equal length. Takes no lock beyond the new rows.
INSERT INTO outbox (topic, order_id, event_id, value, traceparent, tracestate)
SELECT * FROM unnest(
    %(topics)s::text[], %(order_ids)s::text[], %(event_ids)s::uuid[], %(values)s::text[],
    %(traceparents)s::text[], %(tracestates)s::text[]
);

-- name: wake_relay
-- Tells a listening relay, at commit, that there are rows; once per transaction however many there are.
NOTIFY orderstream_outbox;

-- name: limit_statements
-- Limits how long each statement of this transaction may take. Parameter: the limit as text.
SELECT set_config('statement_timeout', %(limit)s, TRUE);
