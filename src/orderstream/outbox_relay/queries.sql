-- The relay's statements. Every service appends to `outbox`; only the relay takes rows out. Retention removes orders, and
-- the units of confirmed ones from `inventory`.

-- name: claim
-- Takes the oldest rows of a range that no other relay holds; they are gone when the transaction commits, and back when it
-- does not. Parameters: ids of the range (after, upto); rows at most; bytes of values, which only the last row taken may go
-- beyond.
-- Index: outbox_pkey, for the order and, by the array, for the delete on an empty table too. Skips locked rows.
WITH held AS MATERIALIZED (
    SELECT id, octet_length(value) AS bytes
    FROM outbox
    WHERE id > %(after)s AND id <= %(upto)s
    ORDER BY id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), summed AS (
    SELECT id, sum(bytes) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) - bytes AS bytes_before FROM held
)
DELETE FROM outbox
WHERE id = ANY(ARRAY(SELECT id FROM summed WHERE bytes_before < %(bytes)s))
RETURNING id, topic, order_id, event_id::text, value, traceparent, tracestate, created_at;

-- name: put_back
-- Puts rows back that this transaction has claimed, as they were. Parameters: arrays of equal length.
INSERT INTO outbox (id, topic, order_id, event_id, value, traceparent, tracestate, created_at)
OVERRIDING SYSTEM VALUE
SELECT * FROM unnest(
    %(ids)s::bigint[], %(topics)s::text[], %(order_ids)s::text[], %(event_ids)s::uuid[], %(values)s::text[],
    %(traceparents)s::text[], %(tracestates)s::text[], %(created_ats)s::timestamptz[]
);

-- name: depth
-- How many rows wait behind an id, counted up to a limit, and for how many seconds the oldest has; then the id in
-- outbox_floor and the newest id. Parameter: id. Index: outbox_pkey.
SELECT (SELECT count(*) FROM (SELECT FROM outbox WHERE id > %(low)s ORDER BY id LIMIT 100000) AS counted),
       coalesce((
           SELECT extract(epoch FROM now() - created_at) FROM outbox WHERE id > %(low)s ORDER BY id LIMIT 1
       ), 0)::float8,
       (SELECT id FROM outbox_floor),
       coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')), 0);

-- name: find_position
-- The id behind which relays begin to look, and the newest id. No index, no lock.
SELECT (SELECT id FROM outbox_floor), coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')), 0);

-- name: raise_floor
-- Tells other relays and the gateways where to begin. Parameter: id. Index: outbox_floor_pkey. Locks its one row.
UPDATE outbox_floor SET id = greatest(id, %(low)s) WHERE only_row;

-- name: reset_floor
-- Has everyone begin with the first id. Index: outbox_floor_pkey. Locks its one row.
UPDATE outbox_floor SET id = 0 WHERE only_row;

-- name: listen
-- Has this connection woken by wake_relay.
LISTEN orderstream_outbox;

-- name: set_short_timeouts
-- Has this transaction give up sooner than others do: while it waits, nothing is published. Parameters: times as text.
SELECT set_config('lock_timeout', %(lock_timeout)s, TRUE), set_config('statement_timeout', %(statement_timeout)s, TRUE);

-- name: old_orders
-- Looks at the oldest orders after one: returns the ids of all that it looked at, and of those that it locked because
-- they may be removed: settled, unless confirmed compensated, with stock held exactly if confirmed, and nothing of them
-- under way in `payments` or `outbox`. Parameters: id to begin after ('' for the first), days, rows at most, and
-- whether to look at every order, since an id may have a wrong time. What is removed depends on updated_at alone.
-- Index: orders_pkey. An id begins with the milliseconds of its order, so a walk over old ids ends at the time in
-- question. All ids have one form, so they sort by time in every collation, and before 'g'. Then outbox_order_id,
-- payments_pkey and reservations_pkey, each by a subquery that returns a value: an EXISTS may be planned as a join that
-- reads all of the other table.
-- Locks the rows in the order of their ids; skips those that others hold: something is happening to them.
WITH page AS MATERIALIZED (
    SELECT id
    FROM orders
    WHERE id > %(after)s AND id < (
        SELECT CASE
            WHEN %(every_order)s THEN 'g' ELSE concat(left(h, 8), '-', right(h, 4), '-7000-8000-000000000000')
        END
        FROM lpad(to_hex(greatest(0, extract(epoch FROM now() - %(days)s * interval '1 day') * 1000)::bigint), 12, '0')
            AS h)
    ORDER BY id
    LIMIT %(limit)s
), removable AS MATERIALIZED (
    SELECT o.id
    FROM orders o
    WHERE o.id = ANY(ARRAY(SELECT id FROM page))
        AND o.updated_at < now() - %(days)s * interval '1 day'
        AND (o.status = 'CONFIRMED'
             OR (o.status IN ('FAILED', 'CANCELLED') AND o.payment IN ('failed', 'voided')
                 AND (o.stock = 'released' OR (o.aborted_at IS NULL AND o.stock <> 'reserved'))))
        AND (o.status = 'CONFIRMED')
            = coalesce((SELECT r.state = 'RESERVED' FROM reservations r WHERE r.order_id = o.id), FALSE)
        AND (SELECT p.next_attempt_at FROM payments p WHERE p.order_id = o.id) IS NULL
        AND (SELECT w.id FROM outbox w WHERE w.order_id = o.id LIMIT 1) IS NULL
    ORDER BY o.id
    FOR UPDATE SKIP LOCKED
)
SELECT ARRAY(SELECT id FROM page ORDER BY id), ARRAY(SELECT id FROM removable ORDER BY id);

-- name: units_of
-- How many units of each SKU these orders hold. Parameter: order ids. Index: reservations_pkey.
-- Locks the rows in the order of their ids.
WITH held AS MATERIALIZED (
    SELECT lines
    FROM reservations
    WHERE order_id = ANY(%(ids)s::text[]) AND state = 'RESERVED'
    ORDER BY order_id
    FOR UPDATE
)
SELECT l.key, sum(l.value::bigint)::bigint FROM held, jsonb_each_text(held.lines) l GROUP BY l.key ORDER BY l.key;

-- name: remove_orders
-- Removes orders, and with them, by the foreign keys, their items, payments and reservations. Parameter: order ids.
-- Index: orders_pkey; order_items_pkey, payments_pkey and reservations_pkey. The rows are locked already (old_orders).
DELETE FROM orders WHERE id = ANY(%(ids)s::text[]);

-- name: lock_skus
-- Locks SKUs, in their order, as whoever reserves does. Parameter: SKUs. Index: inventory_pkey.
SELECT FROM inventory WHERE sku = ANY(%(skus)s::text[]) ORDER BY sku FOR NO KEY UPDATE;

-- name: take_sold
-- Takes the units of confirmed orders that are removed out of what is reserved. Parameters: SKUs, quantities.
-- Index: inventory_pkey. The rows are locked already (lock_skus).
UPDATE inventory i
SET reserved = i.reserved - m.quantity
FROM unnest(%(skus)s::text[], %(quantities)s::bigint[]) AS m (sku, quantity)
WHERE i.sku = m.sku;
