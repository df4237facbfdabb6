-- The statement of `orderstream status`. It reads a bounded number of rows, so that it also answers during a backlog.

-- name: progress
-- Counts up to 1,000 rows of each kind, and returns the age in seconds of the oldest of them (NULL: no row). The kinds are
-- events in the outbox, open orders, aborted orders that are not compensated, and records that Kafka refused.
-- Index: outbox_pkey behind outbox_floor, orders_open, orders_uncompensated, refused_records_refused_at. No lock.
SELECT (SELECT count(*) FROM (SELECT FROM outbox WHERE id > floor.id ORDER BY id LIMIT 1000) AS counted),
       (SELECT extract(epoch FROM now() - created_at) FROM outbox WHERE id > floor.id ORDER BY id LIMIT 1)::float8,
       open.number, open.oldest::float8, aborted.number, aborted.oldest::float8, refused.number, refused.oldest::float8
FROM (SELECT id FROM outbox_floor) AS floor,
     (SELECT count(*) AS number, extract(epoch FROM now() - min(created_at)) AS oldest
      FROM (SELECT created_at FROM orders WHERE status IN ('PROCESSING', 'PAID') ORDER BY next_check_at LIMIT 1000)
          AS found) AS open,
     (SELECT count(*) AS number, extract(epoch FROM now() - min(aborted_at)) AS oldest
      FROM (SELECT aborted_at FROM orders
            WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released')
            ORDER BY next_check_at LIMIT 1000) AS found) AS aborted,
     (SELECT count(*) AS number, extract(epoch FROM now() - min(refused_at)) AS oldest
      FROM (SELECT refused_at FROM refused_records ORDER BY refused_at LIMIT 1000) AS found) AS refused;
