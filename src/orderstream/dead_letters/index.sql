-- The index of the dead letters: how the tailer fills it, and how the console and the commands read it.

-- name: lock_index
-- Waits until no other tailer writes. So ids are committed in their order, and a count up to an id stays complete.
-- Parameter: the key of the advisory lock. The lock ends with the transaction.
SELECT pg_advisory_xact_lock(%(key)s);

-- name: positions
-- Returns how far each partition is in the index. Index: dead_letter_positions_pkey. A row for each partition.
SELECT service, partition, topic_id, next_offset
FROM dead_letter_positions
ORDER BY service, partition
LIMIT 10000;

-- name: begin_partitions
-- Adds partitions that are not in the index yet. Parameters: service, topic id, and the numbers of the partitions.
INSERT INTO dead_letter_positions (service, partition, topic_id, next_offset)
SELECT %(service)s, partition, %(topic_id)s, 0 FROM unnest(%(partitions)s::int[]) AS partition
ON CONFLICT (service, partition) DO NOTHING;

-- name: add_letters
-- Adds letters, and does nothing for a letter that is there. Parameters: arrays of equal length. A letter is left out
-- if its topic was created again since, or if its partition is already further. Locks only the new rows.
INSERT INTO dead_letters (service, partition, "offset", at, reason, source_topic, source_partition, source_offset,
                          error, order_id, size, cut, redriven_from, redrive_job, tries)
SELECT added.service, added.partition, added.letter_offset, added.at, added.reason, added.source_topic,
       added.source_partition, added.source_offset, added.error, added.order_id, added.size, added.cut,
       added.redriven_from, added.redrive_job, added.tries
FROM unnest(
    %(services)s::text[], %(partitions)s::int[], %(offsets)s::bigint[], %(ats)s::timestamptz[], %(reasons)s::text[],
    %(source_topics)s::text[], %(source_partitions)s::int[], %(source_offsets)s::bigint[], %(errors)s::text[],
    %(order_ids)s::text[], %(sizes)s::int[], %(cuts)s::bool[], %(redriven_froms)s::text[], %(redrive_jobs)s::bigint[],
    %(tries)s::int[], %(topic_ids)s::text[]
) WITH ORDINALITY AS added (service, partition, letter_offset, at, reason, source_topic, source_partition,
    source_offset, error, order_id, size, cut, redriven_from, redrive_job, tries, topic_id, number)
JOIN dead_letter_positions AS p
    ON p.service = added.service AND p.partition = added.partition AND p.topic_id = added.topic_id
    AND p.next_offset <= added.letter_offset
ORDER BY added.number
ON CONFLICT (service, partition, "offset") DO NOTHING;

-- name: advance
-- Moves partitions forward, never back. Parameters: arrays of equal length, sorted by service and partition.
-- Index: dead_letter_positions_pkey.
UPDATE dead_letter_positions AS p
SET next_offset = read.next_offset
FROM unnest(%(services)s::text[], %(partitions)s::int[], %(topic_ids)s::text[], %(nexts)s::bigint[])
    AS read (service, partition, topic_id, next_offset)
WHERE p.service = read.service AND p.partition = read.partition AND p.topic_id = read.topic_id
    AND p.next_offset < read.next_offset;

-- name: forget_letters
-- Deletes letters of a service, at most 5,000. Parameter: the service. Index: dead_letters_service_partition_offset_key.
DELETE FROM dead_letters
WHERE id = ANY(ARRAY(SELECT id FROM dead_letters WHERE service = %(service)s LIMIT 5000));

-- name: restart_partitions
-- Begins the partitions of a topic again at offset 0, because it was deleted and created again.
-- Parameters: the service, and the new topic id. Index: dead_letter_positions_pkey.
UPDATE dead_letter_positions
SET topic_id = %(topic_id)s, next_offset = 0
WHERE service = %(service)s AND topic_id <> %(topic_id)s;

-- name: remove_expired
-- Deletes letters that Kafka no longer has, at most 1,000. Parameters: service, partition, and its first offset.
-- Index: dead_letters_service_partition_offset_key. Skips locked rows.
DELETE FROM dead_letters
WHERE id = ANY(ARRAY(
    SELECT id FROM dead_letters
    WHERE service = %(service)s AND partition = %(partition)s AND "offset" < %(first)s
    ORDER BY "offset"
    LIMIT 1000
    FOR UPDATE SKIP LOCKED));

-- name: letters
-- Returns letters, newest first. Parameters: `upto` and `floor`, the ids to look at; `scan`, the maximum number of
-- letters to look at; the filter, whose missing parts are NULL; and the maximum number of rows.
-- Index: dead_letters_pkey, then dead_letters_redriven_from. The second id is that of a letter of the last redrive.
SELECT l.id, l.service, l.partition, l."offset", l.at, l.reason, l.source_topic, l.source_partition, l.source_offset,
       l.error, l.order_id, l.size, l.cut, l.redriven_from, l.tries, l.state, l.state_at, l.job_id, again.place
FROM (
    SELECT * FROM dead_letters WHERE id BETWEEN %(floor)s AND %(upto)s ORDER BY id DESC LIMIT %(scan)s
) AS l
LEFT JOIN LATERAL (
    SELECT f.service || '/' || f.partition || '@' || f."offset" AS place
    FROM dead_letters AS f
    WHERE f.redriven_from = l.service || '/' || l.partition || '@' || l."offset" AND f.redrive_job = l.job_id
    LIMIT 1
) AS again ON l.state = 'redriven'
WHERE (%(ids)s::bigint[] IS NULL OR l.id = ANY(%(ids)s::bigint[]))
    AND (%(service)s::text IS NULL OR l.service = %(service)s)
    AND (%(reason)s::text IS NULL OR l.reason = %(reason)s)
    AND (%(topic)s::text IS NULL OR l.source_topic = %(topic)s)
    AND (%(error)s::text IS NULL OR l.error = %(error)s)
    AND (%(state)s::text IS NULL OR l.state = %(state)s)
    AND (%(since)s::timestamptz IS NULL OR l.at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR l.at < %(until)s)
ORDER BY l.id DESC
LIMIT %(limit)s;

-- name: groups
-- Counts letters by service, reason, source topic and error, the newest group first. Parameters as of `letters`.
-- Index: dead_letters_pkey.
SELECT l.service, l.reason, l.source_topic, l.error, count(*), count(*) FILTER (WHERE l.state = 'open'),
       count(*) FILTER (WHERE l.state = 'redriven'), count(*) FILTER (WHERE l.state = 'discarded'),
       min(l.at), max(l.at), max(l.id)
FROM (
    SELECT * FROM dead_letters WHERE id BETWEEN %(floor)s AND %(upto)s ORDER BY id DESC LIMIT %(scan)s
) AS l
WHERE (%(ids)s::bigint[] IS NULL OR l.id = ANY(%(ids)s::bigint[]))
    AND (%(service)s::text IS NULL OR l.service = %(service)s)
    AND (%(reason)s::text IS NULL OR l.reason = %(reason)s)
    AND (%(topic)s::text IS NULL OR l.source_topic = %(topic)s)
    AND (%(error)s::text IS NULL OR l.error = %(error)s)
    AND (%(state)s::text IS NULL OR l.state = %(state)s)
    AND (%(since)s::timestamptz IS NULL OR l.at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR l.at < %(until)s)
GROUP BY l.service, l.reason, l.source_topic, l.error
ORDER BY max(l.id) DESC
LIMIT %(limit)s;

-- name: passed_scan
-- Returns the id of the first letter that a search did not look at. Parameters as of `letters`. Index: dead_letters_pkey.
SELECT id FROM dead_letters WHERE id BETWEEN %(floor)s AND %(upto)s ORDER BY id DESC OFFSET %(scan)s LIMIT 1;

-- name: ids_of_order
-- Returns the ids of the newest letters of an order. Index: dead_letters_order_id.
SELECT id FROM dead_letters WHERE order_id = %(order_id)s ORDER BY id DESC LIMIT %(limit)s;

-- name: ids_at
-- Returns the ids of letters by their positions. Parameters: arrays of equal length.
-- Index: dead_letters_service_partition_offset_key.
SELECT l.id
FROM unnest(%(services)s::text[], %(partitions)s::bigint[], %(offsets)s::bigint[]) AS c (service, partition, letter_offset)
JOIN dead_letters AS l ON l.service = c.service AND l.partition = c.partition AND l."offset" = c.letter_offset
LIMIT 1000;

-- name: newest_id
-- Returns the newest id and the time. Index: dead_letters_pkey.
SELECT coalesce((SELECT id FROM dead_letters ORDER BY id DESC LIMIT 1), 0), clock_timestamp();

-- name: changes
-- Returns values that change when a letter is added or removed, or when a job changes letters.
-- Index: dead_letters_pkey, dead_letter_jobs_pkey. Reads a few rows.
SELECT (SELECT id FROM dead_letters ORDER BY id DESC LIMIT 1),
       (SELECT id FROM dead_letters ORDER BY id LIMIT 1),
       (SELECT sum(j.done + j.refused + j.gone) + max(j.id)
        FROM (SELECT * FROM dead_letter_jobs ORDER BY id DESC LIMIT 20) AS j);

-- name: history
-- Returns what jobs did with a letter, the newest first. Index: dead_letter_actions_letter_id_job_id_key.
SELECT a.job_id, j.kind, j.actor, j.note, a.state, a.sends, a.at, a.detail
FROM dead_letter_actions AS a JOIN dead_letter_jobs AS j ON j.id = a.job_id
WHERE a.letter_id = %(letter_id)s
ORDER BY a.job_id DESC
LIMIT %(limit)s;
