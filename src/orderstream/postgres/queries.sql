-- Statements that several services use.

-- name: append_to_outbox
-- Appends events to the outbox, in the given order. Parameters: arrays of equal length. Locks only the new rows.
INSERT INTO outbox (topic, order_id, event_id, value, traceparent, tracestate)
SELECT * FROM unnest(
    %(topics)s::text[], %(order_ids)s::text[], %(event_ids)s::uuid[], %(values)s::text[],
    %(traceparents)s::text[], %(tracestates)s::text[]
);

-- name: wake_relay
-- Notifies a listening relay at commit that there are rows. Postgres sends one notification for each transaction.
NOTIFY orderstream_outbox;

-- name: limit_statements
-- Sets the statement_timeout of this transaction. Parameter: the limit as text.
SELECT set_config('statement_timeout', %(limit)s, TRUE);
