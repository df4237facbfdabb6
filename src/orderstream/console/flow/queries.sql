-- What the overview reads from Postgres every few seconds. No statement takes a lock or reads more than its limit.

-- name: set_reading
-- Makes this session unable to write, and ends its statements early. No table.
SELECT set_config('default_transaction_read_only', 'on', FALSE), set_config('statement_timeout', '2s', FALSE);

-- name: pace
-- Counts the orders whose ids have a time after `after` and before now minus `settling_seconds`, and the open orders
-- among all orders up to that time. Returns the id and the time (seconds since 1970) at which the span ends.
-- The next span begins there, so that no order is counted twice. The time in an id comes from the gateway's clock.
-- Parameters: `after`, the end of the last span (NULL: count none), `settling_seconds`, and `limit`, the number of rows
-- at which each count stops. Index: orders_pkey, orders_open. No lock.
SELECT span.upto, span.ends_at::float8, accepted.number, open.number
FROM (SELECT ends_at, concat(left(h, 8), '-', right(h, 4), '-7000-8000-000000000000') AS upto
      FROM (SELECT extract(epoch FROM clock_timestamp()) - %(settling_seconds)s::float8 AS ends_at) AS times,
           lpad(to_hex((ends_at * 1000)::bigint), 12, '0') AS h) AS span,
     LATERAL (SELECT CASE WHEN %(after)s::text IS NOT NULL THEN
                  (SELECT count(*)
                   FROM (SELECT FROM orders WHERE id >= %(after)s::text AND id < span.upto ORDER BY id
                         LIMIT %(limit)s::bigint) AS counted)
              END AS number) AS accepted,
     LATERAL (SELECT count(*) FILTER (WHERE id < span.upto) AS number
              FROM (SELECT id FROM orders WHERE status IN ('PROCESSING', 'PAID') ORDER BY next_check_at
                    LIMIT %(limit)s::bigint) AS found) AS open;

-- name: latest_orders
-- The newest orders. Parameter: `limit`. Index: orders_pkey, backwards. No lock.
SELECT id, user_id, amount, currency, status, failure_reason, created_at FROM orders ORDER BY id DESC LIMIT %(limit)s;

-- name: newest_by_status
-- Counts the statuses of the newest orders. Parameter: `limit`, the number of orders. Index: orders_pkey, backwards.
SELECT status, count(*) FROM (SELECT status FROM orders ORDER BY id DESC LIMIT %(limit)s) AS newest GROUP BY status;
