-- The promises as SQL. Each block returns the breaches of one promise as rows of (subject, detail). No row means that
-- the promise holds. The blocks are meant for a system without load. A block with the parameter `grace_seconds` ignores
-- orders that changed within this time. A block with the parameters `after` and `upto` checks the orders with ids in
-- this range. Together the blocks read whole tables, without a lock.

-- name: p1_durable
-- Every order was committed with its lines.
SELECT o.id AS subject, 'has no lines' AS detail
FROM orders o
WHERE o.id > %(after)s AND o.id <= %(upto)s
  AND NOT EXISTS (SELECT FROM order_items i WHERE i.order_id = o.id);

-- name: p2_charged_once
-- A confirmed order is charged exactly the accepted amount. A failed or cancelled order is charged nothing.
SELECT o.id AS subject,
       concat(o.status, ', accepted ', o.amount, ' ', o.currency, ', payment ', coalesce(p.state, 'missing'),
              ' of ', coalesce(p.amount::text, 'nothing')) AS detail
FROM orders o
LEFT JOIN payments p ON p.order_id = o.id
WHERE o.id > %(after)s AND o.id <= %(upto)s
  AND ((p.state = 'AUTHORIZED' AND p.amount IS DISTINCT FROM o.amount)
   OR (o.status = 'CONFIRMED' AND p.state IS DISTINCT FROM 'AUTHORIZED')
   OR (o.status IN ('FAILED', 'CANCELLED') AND p.state IN ('PENDING', 'AUTHORIZED', 'VOIDING')
       AND o.updated_at < now() - %(grace_seconds)s * interval '1 second')
   OR (o.payment IN ('failed', 'voided') AND p.state IN ('PENDING', 'AUTHORIZED')));

-- name: p3_stock_conserved
-- The reserved units of each SKU are the units that reservations hold. No number of units is negative.
SELECT sku AS subject,
       concat('reserved ', coalesce(i.reserved, 0), ', held by orders ', coalesce(h.held, 0), ', available ',
              i.available) AS detail
FROM inventory i
FULL JOIN (
    SELECT l.key AS sku, sum(l.value::numeric) AS held
    FROM reservations r, jsonb_each_text(r.lines) l
    WHERE r.state = 'RESERVED'
    GROUP BY l.key
) h USING (sku)
WHERE coalesce(i.reserved, 0) <> coalesce(h.held, 0) OR i.available < 0 OR i.reserved < 0;

-- name: p3_all_lines_or_none
-- A reservation holds exactly the lines of its order, or none.
SELECT r.order_id AS subject, concat(r.state, ' with lines ', r.lines, ', ordered ', i.lines) AS detail
FROM reservations r
LEFT JOIN LATERAL (
    SELECT jsonb_object_agg(sku, qty) AS lines FROM order_items WHERE order_id = r.order_id
) i ON TRUE
WHERE r.order_id > %(after)s AND r.order_id <= %(upto)s
  AND ((r.state = 'RESERVED' AND r.lines IS DISTINCT FROM i.lines)
   OR (r.state = 'FAILED' AND r.lines <> '{}'));

-- name: p4_confirmed
-- An order is confirmed if and only if its payment was authorized and its stock reserved before it was aborted.
SELECT o.id AS subject, concat(o.status, ' with payment ', o.payment, ' and stock ', o.stock) AS detail
FROM orders o
WHERE o.id > %(after)s AND o.id <= %(upto)s
  AND ((o.status = 'CONFIRMED') <> (o.payment = 'authorized' AND o.stock = 'reserved' AND o.aborted_at IS NULL));

-- name: p5_settles
-- Every order settles. If it is not confirmed, it is compensated.
SELECT o.id AS subject,
       concat(o.status, ' since ', o.updated_at, ' with payment ', o.payment, ' and stock ', o.stock) AS detail
FROM orders o
WHERE o.id > %(after)s AND o.id <= %(upto)s
  AND o.updated_at < now() - %(grace_seconds)s * interval '1 second'
  AND (o.status IN ('PROCESSING', 'PAID')
       OR (o.status IN ('FAILED', 'CANCELLED') AND o.payment NOT IN ('failed', 'voided'))
       OR (o.aborted_at IS NOT NULL AND o.stock <> 'released'));

-- name: p6_settled_stays
-- The final status of an order matches its cause: its payment and stock, a timeout, or a cancel. It also matches the
-- reasons that payment and inventory have recorded.
SELECT o.id AS subject,
       concat(o.status, ' (', o.failure_reason, ') with payment ', o.payment, ' and stock ', o.stock,
              ', aborted at ', o.aborted_at, '; payment ', p.state, ' (', p.reason, '), stock ', r.state, ' (', r.reason,
              ')') AS detail
FROM orders o
LEFT JOIN payments p ON p.order_id = o.id
LEFT JOIN reservations r ON r.order_id = o.id
WHERE o.id > %(after)s AND o.id <= %(upto)s
  AND ((o.status = 'FAILED' AND (o.failure_reason IS NULL
           OR (o.failure_reason IN ('PAYMENT_DECLINED', 'PROVIDER_UNAVAILABLE') AND o.payment = 'authorized')
           OR (o.failure_reason IN ('OUT_OF_STOCK', 'UNKNOWN_SKU') AND o.stock NOT IN ('failed', 'released'))))
   OR (o.status = 'CANCELLED' AND o.aborted_at IS NULL)
   OR (o.status = 'CONFIRMED' AND o.aborted_at IS NOT NULL)
   OR (o.status = 'PROCESSING' AND o.payment <> 'none')
   OR (o.status = 'PAID' AND o.payment <> 'authorized')
   OR (r.state = 'RELEASED' AND r.reason IS DISTINCT FROM o.failure_reason)
   OR (o.status = 'FAILED' AND o.aborted_at IS NULL AND p.reason IS DISTINCT FROM o.failure_reason));

-- name: p7_facts_agree
-- The payment and the stock in an order match the recorded decisions. An order may learn of a decision late, but never
-- of a decision that was not made.
SELECT o.id AS subject,
       concat('payment ', o.payment, ', decided ', coalesce(p.state, 'nothing'), '; stock ', o.stock,
              ', decided ', coalesce(r.state, 'nothing')) AS detail
FROM orders o
LEFT JOIN payments p ON p.order_id = o.id
LEFT JOIN reservations r ON r.order_id = o.id
WHERE o.id > %(after)s AND o.id <= %(upto)s
  AND ((o.updated_at < now() - %(grace_seconds)s * interval '1 second'
       AND ((p.state IN ('AUTHORIZED', 'FAILED', 'VOIDED') AND o.payment <> lower(p.state))
            OR (r.state IS NOT NULL AND o.stock <> lower(r.state))))
   OR (p.state IS NULL AND o.payment <> 'none')
   OR (r.state IS NULL AND o.stock <> 'none')
   OR (o.stock = 'released' AND r.state <> 'RELEASED')
   OR (o.stock = 'failed' AND r.state = 'RESERVED'));

-- name: p10_one_order_a_key
-- No idempotency key has two orders.
SELECT idempotency_key AS subject, concat(count(*), ' orders') AS detail
FROM orders
WHERE idempotency_key IS NOT NULL
GROUP BY idempotency_key
HAVING count(*) > 1;

-- name: outbox_drained
-- P5: no event waits to be published.
SELECT order_id AS subject, concat(topic, ' waits since ', created_at) AS detail
FROM outbox
WHERE created_at < now() - %(grace_seconds)s * interval '1 second';
