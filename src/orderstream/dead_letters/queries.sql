-- Records that Kafka permanently refuses.

-- name: keep_refused
-- Stores records. If a record is stored already, because it was sent and refused again, its refusals are counted.
-- Parameters: arrays of equal length, sorted by record id, without duplicates. Index: refused_records_pkey.
-- Locks the changed rows in the order of their ids.
INSERT INTO refused_records AS r (record_id, topic, key, value, headers, service, reason)
SELECT * FROM unnest(
    %(record_ids)s::text[], %(topics)s::text[], %(keys)s::bytea[], %(values)s::bytea[], %(headers)s::bytea[],
    %(services)s::text[], %(reasons)s::text[]
)
ON CONFLICT (record_id) DO UPDATE SET times = r.times + 1, refused_at = now(), reason = excluded.reason;

-- name: newest_refused
-- Returns the records that were refused last. Parameter: maximum number of rows. Index: refused_records_refused_at.
SELECT record_id, topic, key, value, headers, service, reason, times, refused_at
FROM refused_records
ORDER BY refused_at DESC
LIMIT %(limit)s;

-- name: refused_heads
-- Returns the records that were refused last, without their values and headers. Parameter: maximum number of rows.
-- Index: refused_records_refused_at.
SELECT record_id, refused_at, service, left(topic, 250), substring(key FOR 400), times, left(reason, 1000)
FROM refused_records
ORDER BY refused_at DESC
LIMIT %(limit)s;

-- name: refused_record
-- Returns the record whose id begins with a prefix; two rows if more than one id does. Parameter: the prefix.
-- Index: refused_records_pkey.
SELECT record_id, topic, key, value, headers, service, reason, times, refused_at
FROM refused_records
WHERE record_id = ANY(ARRAY(SELECT record_id FROM refused_records WHERE starts_with(record_id, %(prefix)s) LIMIT 2));

-- name: lock_refused
-- Locks the oldest records, to send them. Parameters: `before`, the time before which they were refused, and the
-- maximum number of rows. Index: refused_records_refused_at. Skips rows that another redrive has locked.
SELECT record_id, topic, key, value, headers, service, reason, times, refused_at
FROM refused_records
WHERE refused_at < %(before)s
ORDER BY refused_at
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED;

-- name: remove_refused
-- Deletes records that Kafka has acknowledged. Parameter: record ids. Index: refused_records_pkey.
DELETE FROM refused_records WHERE record_id = ANY(%(record_ids)s::text[]);

-- name: count_refused
-- Counts the stored records, up to 100,000. Index: refused_records_refused_at.
SELECT count(*) FROM (SELECT FROM refused_records ORDER BY refused_at LIMIT 100000) AS counted;

-- name: forget_refused
-- Deletes records that were refused more than `hours` ago, at most 1,000. Index: refused_records_refused_at, then
-- refused_records_pkey. Skips locked rows.
DELETE FROM refused_records
WHERE record_id = ANY(ARRAY(
    SELECT record_id FROM refused_records
    WHERE refused_at < now() - %(hours)s * interval '1 hour'
    ORDER BY refused_at
    LIMIT 1000
    FOR UPDATE SKIP LOCKED));
