-- Records that Kafka refuses for good: they are kept here, so that they hold up no other record.
CREATE TABLE refused_records (
    -- Digest of what makes the record the same one when it is refused again.
    record_id  TEXT PRIMARY KEY,
    topic      TEXT NOT NULL,
    key        BYTEA,
    value      BYTEA,
    -- Names and values of the headers, as MessagePack: a header may hold any bytes.
    headers    BYTEA NOT NULL,
    service    TEXT NOT NULL,
    reason     TEXT NOT NULL,
    times      INT NOT NULL DEFAULT 1,
    refused_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
CREATE INDEX refused_records_refused_at ON refused_records (refused_at);

-- An id below which no outbox row is expected: relays and gateways begin to look behind it. While another session holds a
-- snapshot, millions of dead entries lie before it in the index. The relays also sweep the range below it.
CREATE TABLE outbox_floor (
    only_row BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    id       BIGINT NOT NULL
);
INSERT INTO outbox_floor (id) VALUES (0);
