// Places orders and reads each of them until it is settled. Variables: BASE_URL, ORDER_PATH, ID_FIELD.
// By default, the load rises from 5 to 40 orders per second within 3.5 minutes. For a short run: --vus 5 --duration 30s.
// An order may end FAILED, because SKU-1 has only 100 units at first. The script checks that every accepted order settles.
import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter, Rate, Trend } from 'k6/metrics';

const BASE_URL = __ENV.BASE_URL || 'http://localhost:3000';
const ORDER_PATH = __ENV.ORDER_PATH || '/orders';
const ID_FIELD = __ENV.ID_FIELD || 'orderId';

const SETTLE_LIMIT_MS = 10000;
const POLL_FIRST_MS = 10;
const POLL_LONGEST_MS = 250;

const settleTime = new Trend('settle_ms', true);
const unsettled = new Rate('unsettled');
const confirmed = new Counter('orders_confirmed');
const failed = new Counter('orders_failed');

export const options = {
  scenarios: {
    orders: {
      executor: 'ramping-arrival-rate',
      startRate: 5,
      timeUnit: '1s',
      preAllocatedVUs: 40,
      maxVUs: 200,
      stages: [
        { target: 20, duration: '60s' },
        { target: 40, duration: '60s' },
        { target: 40, duration: '60s' },
        { target: 5, duration: '30s' },
      ],
    },
  },
  summaryTrendStats: ['avg', 'min', 'med', 'p(95)', 'p(99)', 'max'],
  thresholds: {
    http_req_failed: ['rate<0.01'],
    checks: ['rate>0.99'],
    'http_req_duration{name:place}': ['p(95)<500'],
    'http_req_duration{name:read}': ['p(95)<500'],
    settle_ms: ['p(95)<2000'],
    unsettled: ['rate==0'],
  },
};

export default function () {
  const sent = Date.now();
  const order = {
    userId: `u-${__VU}`,
    items: [{ sku: 'SKU-1', qty: 1, price: 129.0 }],
    amount: 129.0,
    currency: 'USD',
  };
  const placed = http.post(`${BASE_URL}${ORDER_PATH}`, JSON.stringify(order), {
    headers: { 'content-type': 'application/json' },
    tags: { name: 'place' },
  });
  if (!check(placed, { 'order accepted': (reply) => reply.status === 201 && !!reply.json(ID_FIELD) })) {
    return;
  }
  const status = settle(placed.json(ID_FIELD), sent);
  unsettled.add(status === null);
  if (status === null) {
    return;
  }
  settleTime.add(Date.now() - sent);
  (status === 'CONFIRMED' ? confirmed : failed).add(1);
}

// Reads the order at growing intervals until it is settled. Returns null if it is not settled within SETTLE_LIMIT_MS.
function settle(id, sent) {
  for (let pause = POLL_FIRST_MS; Date.now() - sent < SETTLE_LIMIT_MS; pause = Math.min(pause * 2, POLL_LONGEST_MS)) {
    sleep(pause / 1000);
    const read = http.get(`${BASE_URL}${ORDER_PATH}/${id}`, { tags: { name: 'read' } });
    check(read, { 'order read': (reply) => reply.status === 200 || reply.status === 202 });
    if (read.status === 200) {
      return read.json('status');
    }
  }
  return null;
}
