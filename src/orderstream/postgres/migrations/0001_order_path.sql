-- The order path: what was accepted, what was decided about it, and what is still to be published.
-- The seed tables (orders, order_items, inventory) keep their columns; a database that has `inventory` already, made by
-- db/init_inventory.sql, keeps its rows.

CREATE TABLE orders (
    id              TEXT PRIMARY KEY,
    user_id         TEXT NOT NULL,
    amount          NUMERIC NOT NULL CHECK (amount > 0),
    currency        TEXT NOT NULL,
    status          TEXT NOT NULL DEFAULT 'PROCESSING'
                    CHECK (status IN ('PROCESSING', 'PAID', 'CONFIRMED', 'FAILED', 'CANCELLED')),
    failure_reason  TEXT
                    CHECK (failure_reason IN
                        ('PAYMENT_DECLINED', 'PROVIDER_UNAVAILABLE', 'OUT_OF_STOCK', 'UNKNOWN_SKU', 'TIMED_OUT')),
    created_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- The facts that the status is derived from, and when each was decided.
    payment         TEXT NOT NULL DEFAULT 'none' CHECK (payment IN ('none', 'authorized', 'failed', 'voided')),
    stock           TEXT NOT NULL DEFAULT 'none' CHECK (stock IN ('none', 'reserved', 'failed', 'released')),
    payment_at      TIMESTAMPTZ,
    stock_at        TIMESTAMPTZ,
    version         INT NOT NULL DEFAULT 1,
    -- When the watchdog looks at an open order, or repeats an abort, the next time, and how often it did.
    next_check_at   TIMESTAMPTZ NOT NULL DEFAULT now() + interval '30 seconds',
    nudges          INT NOT NULL DEFAULT 0,
    aborted_at      TIMESTAMPTZ,
    idempotency_key TEXT,
    request_hash    BYTEA,
    -- W3C trace context of the request that created the order.
    traceparent     TEXT,
    tracestate      TEXT,
    CONSTRAINT only_failed_has_a_reason CHECK (status = 'FAILED' OR failure_reason IS NULL),
    CONSTRAINT confirmed_is_authorized_and_reserved
        CHECK (status <> 'CONFIRMED' OR (payment = 'authorized' AND stock = 'reserved'))
);

CREATE UNIQUE INDEX orders_idempotency_key ON orders (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX orders_open ON orders (next_check_at) WHERE status IN ('PROCESSING', 'PAID');
CREATE INDEX orders_uncompensated ON orders (next_check_at)
    WHERE aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock <> 'reserved');

CREATE TABLE order_items (
    order_id TEXT NOT NULL REFERENCES orders (id) ON DELETE CASCADE,
    sku      TEXT NOT NULL,
    qty      INT NOT NULL CHECK (qty > 0),
    price    NUMERIC NOT NULL CHECK (price > 0),
    PRIMARY KEY (order_id, sku)
);

CREATE TABLE IF NOT EXISTS inventory (
    sku       TEXT PRIMARY KEY,
    available INT NOT NULL DEFAULT 0,
    reserved  INT NOT NULL DEFAULT 0
);
ALTER TABLE inventory
    ADD CONSTRAINT inventory_available_not_negative CHECK (available >= 0),
    ADD CONSTRAINT inventory_reserved_not_negative CHECK (reserved >= 0);
-- Every reservation rewrites its SKU's row: leave room for the new versions on the same page.
ALTER TABLE inventory SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE payments (
    order_id        TEXT PRIMARY KEY REFERENCES orders (id) ON DELETE CASCADE,
    state           TEXT NOT NULL CHECK (state IN ('PENDING', 'AUTHORIZED', 'FAILED', 'VOIDING', 'VOIDED')),
    amount          NUMERIC,
    reason          TEXT,
    attempts        INT NOT NULL DEFAULT 0,
    next_attempt_at TIMESTAMPTZ,
    decided_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- When an attempt first ended it FAILED or VOIDED.
    closed_at       TIMESTAMPTZ,
    traceparent     TEXT,
    tracestate      TEXT,
    CONSTRAINT unfinished_is_scheduled CHECK ((state IN ('PENDING', 'VOIDING')) = (next_attempt_at IS NOT NULL))
);

CREATE INDEX payments_due ON payments (next_attempt_at) WHERE next_attempt_at IS NOT NULL;

CREATE TABLE reservations (
    order_id   TEXT PRIMARY KEY REFERENCES orders (id) ON DELETE CASCADE,
    state      TEXT NOT NULL CHECK (state IN ('RESERVED', 'FAILED', 'RELEASED')),
    -- SKU -> quantity: held while RESERVED, given back when RELEASED.
    lines      JSONB NOT NULL DEFAULT '{}',
    reason     TEXT,
    skus       TEXT[],
    decided_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE outbox (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic       TEXT NOT NULL,
    order_id    TEXT NOT NULL,
    event_id    UUID NOT NULL,
    value       TEXT NOT NULL,
    traceparent TEXT,
    tracestate  TEXT,
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now()
);
-- Which orders are merely queued: the watchdog leaves them alone.
CREATE INDEX outbox_order_id ON outbox (order_id);
-- Rows live for milliseconds: keep the dead ones from piling up at the low end of the index.
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
                        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000);
