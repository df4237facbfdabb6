-- Redrives and discards of many letters: what an operator confirmed, and how a runner works on it.

-- name: count_letters
-- Counts the letters that a job would touch and those that it would skip, by the reason of the skip ('' for none).
-- Parameters: those of `letters` in index.sql; `kind`, `again`; and `own_services` and `own_topics`, arrays of equal
-- length with the topics into which a service's letters may be redriven. Index: dead_letters_pkey, then
-- dead_letter_actions_pending.
SELECT skip, count(*)
FROM (
    SELECT CASE
        WHEN EXISTS (SELECT FROM dead_letter_actions AS a
                     WHERE a.letter_id = l.id AND a.state IN ('queued', 'sending')) THEN 'inAnotherJob'
        WHEN l.state = 'redriven' AND NOT %(again)s THEN 'alreadyRedriven'
        WHEN l.state = 'discarded' AND NOT %(again)s THEN 'alreadyDiscarded'
        WHEN %(kind)s = 'discard' THEN ''
        WHEN l.cut THEN 'cut'
        WHEN NOT EXISTS (SELECT FROM unnest(%(own_services)s::text[], %(own_topics)s::text[]) AS own (service, topic)
                         WHERE own.service = l.service AND own.topic = l.source_topic) THEN 'foreignTopic'
        ELSE '' END AS skip
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
) AS counted
GROUP BY skip
LIMIT 10;

-- name: queue_letters
-- Queues the letters that a job touches, in the order of their offsets, at most `limit`. Parameters: those of
-- `count_letters`, and the job. A letter that changed after `counted_at` is left out. Index: dead_letters_pkey, then
-- dead_letter_actions_pending. Waits for another job that queues the same letter.
INSERT INTO dead_letter_actions (job_id, letter_id, service, partition, "offset")
SELECT %(job_id)s, l.id, l.service, l.partition, l."offset"
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
    AND (l.state = 'open' OR %(again)s)
    AND (l.state_at IS NULL OR l.state_at <= %(counted_at)s)
    AND (%(kind)s = 'discard' OR (NOT l.cut AND EXISTS (
        SELECT FROM unnest(%(own_services)s::text[], %(own_topics)s::text[]) AS own (service, topic)
        WHERE own.service = l.service AND own.topic = l.source_topic)))
ORDER BY l.service, l.partition, l."offset"
LIMIT %(limit)s
ON CONFLICT (letter_id) WHERE state IN ('queued', 'sending') DO NOTHING;

-- name: create_job
-- Stores a job that waits for a runner, and returns its id. Locks only the new row.
INSERT INTO dead_letter_jobs (kind, filter, actor, note, rate, counted, counted_at, bound, letters)
VALUES (%(kind)s, %(filter)s::jsonb, %(actor)s, %(note)s, %(rate)s, %(counted)s, %(counted_at)s, %(bound)s, 0)
RETURNING id;

-- name: set_letters
-- Notes how many letters a new job has queued. Index: dead_letter_jobs_pkey.
UPDATE dead_letter_jobs SET letters = %(letters)s WHERE id = %(job_id)s;

-- name: jobs
-- Returns jobs, newest first, below an id. Index: dead_letter_jobs_pkey, and for each job dead_letters_redrive_job.
SELECT j.id, j.kind, j.filter::text, j.actor, j.note, j.rate, j.counted, j.counted_at, j.letters, j.done, j.refused,
       j.gone, j.sent_twice, j.state, j.problem, j.cancel_at, j.cancelled_by, j.created_at, j.started_at, j.finished_at,
       (SELECT count(*) FROM (SELECT FROM dead_letters AS l WHERE l.redrive_job = j.id LIMIT 100000) AS came_back)
FROM dead_letter_jobs AS j
WHERE j.id <= %(upto)s
ORDER BY j.id DESC
LIMIT %(limit)s;

-- name: job_actions
-- Returns what a job did with its letters, by the id of the action, after an id. Index: dead_letter_actions_job_id.
SELECT a.id, a.service, a.partition, a."offset", a.state, a.sends, a.at, a.detail
FROM dead_letter_actions AS a
WHERE a.job_id = %(job_id)s AND a.id > %(after)s AND (%(state)s::text IS NULL OR a.state = %(state)s)
ORDER BY a.id
LIMIT %(limit)s;

-- name: request_cancel
-- Asks the runner of a job to stop. Index: dead_letter_jobs_pkey.
UPDATE dead_letter_jobs SET cancel_at = now(), cancelled_by = %(actor)s
WHERE id = %(job_id)s AND state IN ('waiting', 'running', 'paused') AND cancel_at IS NULL;

-- name: claim_job
-- Claims the oldest unfinished job that no other runner holds. Parameters: the runner, the seconds of its lease, and a job or
-- NULL for any. Index: dead_letter_jobs_unfinished. Skips jobs that another runner is claiming.
UPDATE dead_letter_jobs
SET runner = %(runner)s, lease_until = now() + %(lease_seconds)s * interval '1 second',
    started_at = coalesce(started_at, now()), state = 'running', problem = NULL
WHERE id = (
    SELECT id FROM dead_letter_jobs
    WHERE state IN ('waiting', 'running', 'paused')
        AND (lease_until IS NULL OR lease_until < now() OR runner = %(runner)s)
        AND (%(job_id)s::bigint IS NULL OR id = %(job_id)s)
    ORDER BY id
    LIMIT 1
    FOR UPDATE SKIP LOCKED)
RETURNING id, kind, rate;

-- name: renew_lease
-- Extends the lease of a runner; no row if it has lost the job. Index: dead_letter_jobs_pkey.
UPDATE dead_letter_jobs SET lease_until = now() + %(lease_seconds)s * interval '1 second'
WHERE id = %(job_id)s AND runner = %(runner)s AND lease_until > now()
RETURNING cancel_at IS NOT NULL;

-- name: release_job
-- Gives a job back at once, so that another runner goes on with it. Index: dead_letter_jobs_pkey.
UPDATE dead_letter_jobs SET runner = NULL, lease_until = NULL
WHERE id = %(job_id)s AND runner = %(runner)s;

-- name: hold_job
-- Locks a job for its runner until the end of the transaction; no row if the runner has lost it. Returns whether an
-- operator cancelled it. Index: dead_letter_jobs_pkey.
SELECT cancel_at IS NOT NULL FROM dead_letter_jobs
WHERE id = %(job_id)s AND runner = %(runner)s AND lease_until > now()
FOR NO KEY UPDATE;

-- name: lock_job
-- Locks a job until the end of the transaction, also for a runner that has lost it. Index: dead_letter_jobs_pkey.
SELECT FROM dead_letter_jobs WHERE id = %(job_id)s FOR NO KEY UPDATE;

-- name: letters_in_doubt
-- Returns letters that were given to Kafka without a known result. Index: dead_letter_actions_sending, dead_letters_pkey.
SELECT a.id, a.service, a.partition, a."offset", l.at, l.size, l.source_topic, l.source_offset
FROM dead_letter_actions AS a LEFT JOIN dead_letters AS l ON l.id = a.letter_id
WHERE a.job_id = %(job_id)s AND a.state = 'sending'
ORDER BY a.id
LIMIT %(limit)s;

-- name: letters_queued
-- Returns the next letters of a job, after the id of an action. Index: dead_letter_actions_queued, dead_letters_pkey.
SELECT a.id, a.service, a.partition, a."offset", l.at, l.size, l.source_topic, l.source_offset
FROM dead_letter_actions AS a LEFT JOIN dead_letters AS l ON l.id = a.letter_id
WHERE a.job_id = %(job_id)s AND a.state = 'queued' AND a.id > %(after)s
ORDER BY a.id
LIMIT %(limit)s;

-- name: begin_sending
-- Notes that letters are about to be given to Kafka. Parameter: the ids of the actions. Index: dead_letter_actions_pkey.
-- Locks the rows in the order of their ids.
UPDATE dead_letter_actions SET state = 'sending', sends = sends + 1, at = clock_timestamp()
WHERE id = ANY(ARRAY(
    SELECT id FROM dead_letter_actions
    WHERE id = ANY(%(ids)s::bigint[]) AND state IN ('queued', 'sending')
    ORDER BY id
    FOR UPDATE));

-- name: finish_letters
-- Stores the results of letters, changes their state in the index, and counts them in their job. Parameters: arrays of
-- equal length with ids of actions, states and details; the job. A result that is stored already changes nothing.
-- Index: dead_letter_actions_pkey, dead_letters_pkey, dead_letter_jobs_pkey. Locks the actions by id. The caller has
-- locked the job.
WITH results AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(states)s::text[], %(details)s::text[]) AS r (id, state, detail)
), changed AS (
    UPDATE dead_letter_actions AS a SET state = r.state, detail = r.detail, at = clock_timestamp()
    FROM results AS r
    WHERE a.id = r.id AND a.id = ANY(ARRAY(
        SELECT id FROM dead_letter_actions
        WHERE id = ANY(%(ids)s::bigint[]) AND state IN ('queued', 'sending')
        ORDER BY id
        FOR UPDATE))
    RETURNING a.letter_id, a.state, a.sends
), letters AS (
    UPDATE dead_letters AS l
    SET state = CASE changed.state WHEN 'sent' THEN 'redriven' ELSE 'discarded' END, state_at = clock_timestamp(),
        job_id = %(job_id)s
    FROM changed WHERE l.id = changed.letter_id AND changed.state IN ('sent', 'discarded')
)
UPDATE dead_letter_jobs AS j
SET done = j.done + c.done, refused = j.refused + c.refused, gone = j.gone + c.gone,
    sent_twice = j.sent_twice + c.sent_twice, problem = NULL,
    state = CASE j.state WHEN 'paused' THEN 'running' ELSE j.state END
FROM (
    SELECT count(*) FILTER (WHERE state IN ('sent', 'discarded')) AS done,
           count(*) FILTER (WHERE state = 'refused') AS refused, count(*) FILTER (WHERE state = 'gone') AS gone,
           count(*) FILTER (WHERE state = 'sent' AND sends > 1) AS sent_twice
    FROM changed
) AS c
WHERE j.id = %(job_id)s;

-- name: pause_job
-- Notes why a job does not go on at the moment. Index: dead_letter_jobs_pkey.
UPDATE dead_letter_jobs SET state = 'paused', problem = %(problem)s
WHERE id = %(job_id)s AND runner = %(runner)s;

-- name: cancel_queued
-- Cancels letters that a job has not begun, at most 5,000. Index: dead_letter_actions_queued.
UPDATE dead_letter_actions SET state = 'cancelled', at = clock_timestamp()
WHERE id = ANY(ARRAY(
    SELECT id FROM dead_letter_actions WHERE job_id = %(job_id)s AND state = 'queued'
    ORDER BY id
    LIMIT 5000
    FOR UPDATE));

-- name: finish_job
-- Ends a job. Index: dead_letter_jobs_pkey.
UPDATE dead_letter_jobs
SET state = %(state)s, problem = NULL, finished_at = now(), runner = NULL, lease_until = NULL
WHERE id = %(job_id)s AND runner = %(runner)s;
