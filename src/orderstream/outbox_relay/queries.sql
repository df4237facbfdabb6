-- The statements of outbox-relay. Every service appends to `outbox`, and only the relay deletes from it. Retention
-- removes orders, and takes the units of confirmed orders out of `inventory`.

-- name: claim
-- Deletes the oldest rows of a range that no other relay has locked, and returns them. If the transaction does not
-- commit, they stay. Parameters: ids of the range (after, upto); the maximum number of rows; bytes of values, which
-- only the last row may exceed.
-- Index: outbox_pkey for the order. The array makes the delete use it too in a plan made on an empty table. Skips
-- locked rows.
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
-- Inserts rows again that this transaction has claimed, unchanged. Parameters: arrays of equal length.
INSERT INTO outbox (id, topic, order_id, event_id, value, traceparent, tracestate, created_at)
OVERRIDING SYSTEM VALUE
SELECT * FROM unnest(
    %(ids)s::bigint[], %(topics)s::text[], %(order_ids)s::text[], %(event_ids)s::uuid[], %(values)s::text[],
    %(traceparents)s::text[], %(tracestates)s::text[], %(created_ats)s::timestamptz[]
);

-- name: depth
-- The number of rows after an id, counted up to a limit; the age in seconds of the oldest of them; the id in
-- outbox_floor; and the newest id. Parameter: id. Index: outbox_pkey.
SELECT (SELECT count(*) FROM (SELECT FROM outbox WHERE id > %(low)s ORDER BY id LIMIT 100000) AS counted),
       coalesce((
           SELECT extract(epoch FROM now() - created_at) FROM outbox WHERE id > %(low)s ORDER BY id LIMIT 1
       ), 0)::float8,
       (SELECT id FROM outbox_floor),
       coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')), 0);

-- name: find_position
-- The id after which relays begin, and the newest id. No index, no lock.
SELECT (SELECT id FROM outbox_floor), coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')), 0);

-- name: raise_floor
-- Stores the id after which relays and gateways begin. Parameter: id. Index: outbox_floor_pkey. Locks its one row.
UPDATE outbox_floor SET id = greatest(id, %(low)s) WHERE only_row;

-- name: reset_floor
-- Makes relays and gateways begin with the first id. Index: outbox_floor_pkey. Locks its one row.
UPDATE outbox_floor SET id = 0 WHERE only_row;

-- name: listen
-- Makes this connection receive the notices of wake_relay.
LISTEN orderstream_outbox;

-- name: set_short_timeouts
-- Gives this transaction short timeouts, because the relay publishes nothing while it waits. Parameters: times as text.
SELECT set_config('lock_timeout', %(lock_timeout)s, TRUE), set_config('statement_timeout', %(statement_timeout)s, TRUE);

-- name: old_orders
-- Reads the oldest orders after an id. Returns the ids that it read, and the ids that it locked because the orders may
-- be removed. Such an order is settled. It is CONFIRMED and holds stock, or it is compensated and holds none. It has no
-- attempt in `payments` and no event in `outbox`.
-- Parameters: the id to begin after ('' for the first); days; the maximum number of rows; and whether to read every
-- order, because an id may have a wrong time. Only updated_at decides on the removal.
-- Index: orders_pkey. An id begins with the milliseconds of its order, so a walk over old ids ends at the given age.
-- All ids have one form, so they sort by time in every collation, and before 'g'. Then outbox_order_id, payments_pkey
-- and reservations_pkey, each by a subquery that returns a value, because an EXISTS may be planned as a join that reads
-- the whole other table.
-- Locks the rows in the order of their ids. Skips rows that other transactions have locked.
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
-- The units of each SKU that these orders hold. Parameter: order ids. Index: reservations_pkey.
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
-- Removes orders. The foreign keys remove their items, payments and reservations. Parameter: order ids.
-- Index: orders_pkey; order_items_pkey, payments_pkey and reservations_pkey. The rows are locked already (old_orders).
DELETE FROM orders WHERE id = ANY(%(ids)s::text[]);

-- name: lock_skus
-- Locks SKUs in their order, as inventory-worker does. Parameter: SKUs. Index: inventory_pkey.
SELECT FROM inventory WHERE sku = ANY(%(skus)s::text[]) ORDER BY sku FOR NO KEY UPDATE;

-- name: take_sold
-- Takes the units of removed CONFIRMED orders out of the reserved units. Parameters: SKUs, quantities.
-- Index: inventory_pkey. The rows are locked already (lock_skus).
UPDATE inventory i
SET reserved = i.reserved - m.quantity
FROM unnest(%(skus)s::text[], %(quantities)s::bigint[]) AS m (sku, quantity)
WHERE i.sku = m.sku;
