-- The work that is still under way.

-- name: under_way
-- Counts the rows of each kind and returns the age in seconds of the oldest of them (NULL: no row). The kinds are events
-- in the outbox, open orders, aborted orders that are not compensated, and records that Kafka refused.
-- Parameter: `limit`, the number of rows at which each count stops. With a limit, the statement also skips events at or
-- below outbox_floor, so that it reads few dead index entries. NULL counts all rows.
-- Index: outbox_pkey after outbox_floor, orders_open, orders_uncompensated, refused_records_refused_at. No lock.
SELECT (SELECT count(*)
        FROM (SELECT FROM outbox WHERE id > floor.id ORDER BY id LIMIT %(limit)s::bigint) AS counted),
       (SELECT extract(epoch FROM now() - created_at) FROM outbox WHERE id > floor.id ORDER BY id LIMIT 1)::float8,
       open.number, open.oldest::float8, aborted.number, aborted.oldest::float8, refused.number, refused.oldest::float8
FROM (SELECT CASE WHEN %(limit)s::bigint IS NULL THEN 0 ELSE id END AS id FROM outbox_floor) AS floor,
     (SELECT count(*) AS number, extract(epoch FROM now() - min(created_at)) AS oldest
      FROM (SELECT created_at FROM orders WHERE status IN ('PROCESSING', 'PAID')
            ORDER BY next_check_at LIMIT %(limit)s::bigint) AS found) AS open,
     (SELECT count(*) AS number, extract(epoch FROM now() - min(aborted_at)) AS oldest
      FROM (SELECT aborted_at FROM orders
            WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released')
            ORDER BY next_check_at LIMIT %(limit)s::bigint) AS found) AS aborted,
     (SELECT count(*) AS number, extract(epoch FROM now() - min(refused_at)) AS oldest
      FROM (SELECT refused_at FROM refused_records ORDER BY refused_at LIMIT %(limit)s::bigint) AS found) AS refused;

-- name: payments_under_way
-- Counts the payments that are not finished: those without an answer, those that wait for the customer or the bank, and
-- those that are to be voided. Parameter: `limit`, the number of rows of each lane at which the count stops.
-- Index: payments_due_by_lane. No lock.
SELECT count(*) FILTER (WHERE lane = 'retry' AND pending_since IS NULL),
       count(*) FILTER (WHERE lane = 'retry' AND pending_since IS NOT NULL),
       count(*) FILTER (WHERE lane <> 'retry')
FROM unnest(ARRAY['retry', 'void', 'void_retry']) AS lane,
     LATERAL (SELECT pending_since
              FROM payments
              WHERE (CASE WHEN state = 'PENDING' THEN 'retry'
                          WHEN state = 'VOIDING' AND attempts = 0 THEN 'void'
                          WHEN state = 'VOIDING' THEN 'void_retry' END) = lane
                  AND next_attempt_at IS NOT NULL
              ORDER BY next_attempt_at
              LIMIT %(limit)s::bigint) AS found;
