-- The orders that the audit compares with the ledger of the payment provider. No block takes a lock.

-- name: scope
-- The last order id now, and the id from which on retention keeps every order ('' without retention). An order with a
-- lower id may have been removed, now or within the next hour. Parameter: the days of retention. Index: orders_pkey.
SELECT (SELECT max(id) FROM orders),
       CASE WHEN %(days)s::int = 0 THEN '' ELSE concat(left(h, 8), '-', right(h, 4), '-7000-8000-000000000000') END
FROM (
    SELECT now() - %(days)s::int * interval '1 day' + interval '1 hour' AS kept_since
) AS times, lpad(to_hex((greatest(0, extract(epoch FROM kept_since)) * 1000)::bigint), 12, '0') AS h;

-- name: orders_after
-- The next orders in the order of their ids. All ids have one form, so they have the same order in every collation.
-- Parameters: the id to begin after ('' for the first); the last id; the grace period in seconds; the maximum number of
-- rows. Index: orders_pkey.
SELECT id, amount, currency, status, version, updated_at < now() - %(grace_seconds)s * interval '1 second'
FROM orders
WHERE id > %(after)s AND id <= %(upto)s
ORDER BY id
LIMIT %(limit)s;

-- name: orders_of
-- These orders. Parameters: order ids; the grace period in seconds. Index: orders_pkey.
SELECT id, amount, currency, status, version, updated_at < now() - %(grace_seconds)s * interval '1 second'
FROM orders
WHERE id = ANY(%(ids)s::text[]);
