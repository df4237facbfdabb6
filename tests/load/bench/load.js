// The load of the benchmarks. PHASE=paced places RATE orders per second and reads each of them until it is settled.
// With PHASE=saturated, VUS clients place orders as fast as they are answered. USER marks the orders of one run.
import http from 'k6/http';
import { sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';

const ORDERS = `${__ENV.BASE_URL}/orders`;
const PACED = __ENV.PHASE === 'paced';
const SETTLE_LIMIT_MS = 10000;
const POLL_MS = 10;

const accepted = new Counter('accepted');
const refused = new Counter('refused');
const unanswered = new Counter('unanswered');
const placeTime = new Trend('place_ms', true);
const settleTime = new Trend('settle_ms', true);

// The benchmarks read only the metrics above. The tags of k6's own metrics would cost a fifth of k6's CPU.
export const options = {
  discardResponseBodies: !PACED,
  systemTags: ['status'],
  summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max'],
  scenarios: {
    [__ENV.PHASE]: PACED
      ? {
          executor: 'constant-arrival-rate',
          rate: Number(__ENV.RATE),
          duration: __ENV.DURATION,
          preAllocatedVUs: 50,
        }
      : { executor: 'constant-vus', vus: Number(__ENV.VUS), duration: __ENV.DURATION },
  },
};

const BODY = JSON.stringify({
  userId: __ENV.USER,
  items: [{ sku: __ENV.SKU, qty: 1, price: 129.0 }],
  amount: 129.0,
  currency: 'USD',
});
const HEADERS = { headers: { 'content-type': 'application/json' } };
const READ = { tags: { name: 'read' } };

export default function () {
  const sent = Date.now();
  const reply = http.post(ORDERS, BODY, HEADERS);
  placeTime.add(reply.timings.duration);
  if (reply.status === 201) {
    accepted.add(1);
    if (PACED) {
      follow(reply.json('orderId'), sent);
    }
  } else {
    (reply.status === 0 ? unanswered : refused).add(1);
    sleep(0.05);
  }
}

function follow(id, sent) {
  while (Date.now() - sent < SETTLE_LIMIT_MS) {
    if (http.get(`${ORDERS}/${id}`, READ).status === 200) {
      settleTime.add(Date.now() - sent);
      return;
    }
    sleep(POLL_MS / 1000);
  }
}
