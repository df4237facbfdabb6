-- Records that Kafka refuses for good.

-- name: keep_refused
-- Keeps records. One that is there already, because it was sent and refused again, is counted.
-- Parameters: arrays of equal length, sorted by record id, without duplicates. Index: refused_records_pkey.
-- Locks the rows it changes in the order of their ids.
INSERT INTO refused_records AS r (record_id, topic, key, value, headers, service, reason)
SELECT * FROM unnest(
    %(record_ids)s::text[], %(topics)s::text[], %(keys)s::bytea[], %(values)s::bytea[], %(headers)s::bytea[],
    %(services)s::text[], %(reasons)s::text[]
)
ON CONFLICT (record_id) DO UPDATE SET times = r.times + 1, refused_at = now(), reason = excluded.reason;

-- name: newest_refused
-- The records that were refused last. Parameters: rows at most. Index: refused_records_refused_at.
SELECT record_id, topic, key, value, headers, service, reason, times, refused_at
FROM refused_records
ORDER BY refused_at DESC
LIMIT %(limit)s;

-- name: refused_record
-- One record, by the beginning of its id. Parameter: a LIKE pattern, which begins with 8 hexadecimal digits at least.
SELECT record_id, topic, key, value, headers, service, reason, times, refused_at
FROM refused_records
WHERE record_id = ANY(ARRAY(SELECT record_id FROM refused_records WHERE starts_with(record_id, %(prefix)s) LIMIT 2));

-- name: lock_refused
-- Locks the oldest records after a time, to send them. Parameters: time of refusal to begin at, rows at most.
-- Index: refused_records_refused_at. Skips rows that another redrive holds.
SELECT record_id, topic, key, value, headers, service, reason, times, refused_at
FROM refused_records
WHERE refused_at < %(before)s
ORDER BY refused_at
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;

-- name: remove_refused
-- Removes records that Kafka has acknowledged now. Parameter: record ids. Index: refused_records_pkey.
DELETE FROM refused_records WHERE record_id = ANY(%(record_ids)s::text[]);

-- name: count_refused
-- How many records are kept, counted up to a limit. Index: refused_records_refused_at.
SELECT count(*) FROM (SELECT FROM refused_records ORDER BY refused_at LIMIT 100000) AS counted;

-- name: forget_refused
-- Removes records that were refused long ago, at most 1,000. Parameter: hours. Index: refused_records_refused_at, then
-- refused_records_pkey.
DELETE FROM refused_records
WHERE record_id = ANY(ARRAY(
    SELECT record_id FROM refused_records
    WHERE refused_at < now() - %(hours)s * interval '1 hour'
    ORDER BY refused_at
    LIMIT 1000
    FOR UPDATE SKIP LOCKED));
