-- The index of the dead letters: one row for each record of a <service>.dlq.v1 topic. The bytes stay in Kafka.
CREATE TABLE dead_letters (
    -- Ids are given in the order of the commits: a count up to an id never misses a row that appears later.
    id               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    service          TEXT NOT NULL,
    partition        INT NOT NULL,
    "offset"         BIGINT NOT NULL,
    -- Time of the record in Kafka. NULL if its producer set an invalid time.
    at               TIMESTAMPTZ,
    reason           TEXT NOT NULL,
    -- "-" if the letter does not name one.
    source_topic     TEXT NOT NULL,
    source_partition INT,
    source_offset    BIGINT,
    -- The error without its changing parts, such as ids and numbers.
    error            TEXT NOT NULL,
    order_id         TEXT,
    size             INT NOT NULL,
    cut              BOOLEAN NOT NULL,
    -- The letter and the job from which the failed record had been redriven, and how often it was redriven in all.
    redriven_from    TEXT,
    redrive_job      BIGINT,
    tries            INT NOT NULL DEFAULT 0,
    state            TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'redriven', 'discarded')),
    state_at         TIMESTAMPTZ,
    -- The last job that changed the state.
    job_id           BIGINT,
    UNIQUE (service, partition, "offset"),
    CONSTRAINT only_open_has_no_time CHECK ((state = 'open') = (state_at IS NULL))
);
CREATE INDEX dead_letters_order_id ON dead_letters (order_id) WHERE order_id IS NOT NULL;
CREATE INDEX dead_letters_redriven_from ON dead_letters (redriven_from) WHERE redriven_from IS NOT NULL;
CREATE INDEX dead_letters_redrive_job ON dead_letters (redrive_job) WHERE redrive_job IS NOT NULL;

-- How far each partition is in the index. If a topic was deleted and created again, Kafka gives it another id.
CREATE TABLE dead_letter_positions (
    service     TEXT NOT NULL,
    partition   INT NOT NULL,
    topic_id    TEXT NOT NULL,
    next_offset BIGINT NOT NULL,
    PRIMARY KEY (service, partition)
);

-- A redrive or a discard of many letters, with the limits that its operator confirmed.
CREATE TABLE dead_letter_jobs (
    id           BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         TEXT NOT NULL CHECK (kind IN ('redrive', 'discard')),
    filter       JSONB NOT NULL,
    actor        TEXT NOT NULL,
    note         TEXT NOT NULL,
    rate         INT NOT NULL CHECK (rate BETWEEN 1 AND 5000),
    counted      INT NOT NULL,
    counted_at   TIMESTAMPTZ NOT NULL,
    bound        BIGINT NOT NULL,
    letters      INT NOT NULL,
    done         INT NOT NULL DEFAULT 0,
    refused      INT NOT NULL DEFAULT 0,
    gone         INT NOT NULL DEFAULT 0,
    sent_twice   INT NOT NULL DEFAULT 0,
    state        TEXT NOT NULL DEFAULT 'waiting'
                 CHECK (state IN ('waiting', 'running', 'paused', 'done', 'cancelled')),
    problem      TEXT,
    cancel_at    TIMESTAMPTZ,
    cancelled_by TEXT,
    created_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    started_at   TIMESTAMPTZ,
    finished_at  TIMESTAMPTZ,
    runner       TEXT,
    lease_until  TIMESTAMPTZ
);
CREATE INDEX dead_letter_jobs_unfinished ON dead_letter_jobs (id) WHERE state IN ('waiting', 'running', 'paused');

-- The history: what each job did with each letter. Rows stay when their letter has left Kafka.
CREATE TABLE dead_letter_actions (
    id        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id    BIGINT NOT NULL REFERENCES dead_letter_jobs (id),
    letter_id BIGINT NOT NULL,
    service   TEXT NOT NULL,
    partition INT NOT NULL,
    "offset"  BIGINT NOT NULL,
    state     TEXT NOT NULL DEFAULT 'queued'
              CHECK (state IN ('queued', 'sending', 'sent', 'discarded', 'refused', 'gone', 'cancelled')),
    -- How often the record was given to Kafka. From 2 on, it may be twice in its topic.
    sends     INT NOT NULL DEFAULT 0,
    at        TIMESTAMPTZ,
    detail    TEXT,
    UNIQUE (letter_id, job_id)
);
CREATE INDEX dead_letter_actions_job_id ON dead_letter_actions (job_id, id);
CREATE INDEX dead_letter_actions_queued ON dead_letter_actions (job_id, id) WHERE state = 'queued';
CREATE INDEX dead_letter_actions_sending ON dead_letter_actions (job_id, id) WHERE state = 'sending';
-- Only one job touches a letter at a time.
CREATE UNIQUE INDEX dead_letter_actions_pending ON dead_letter_actions (letter_id) WHERE state IN ('queued', 'sending');
