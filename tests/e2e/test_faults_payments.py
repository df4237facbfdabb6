"""The payment provider is slow or down, and payment-worker is killed meanwhile: the provider charges once (P2, P5).

The provider is the payment simulator. Its ledger says what was charged. KILLS=20 makes the long form of this test.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest

from orderstream.audit.under_way import under_way
from orderstream.payment_worker.breaker import OPEN_MAX_SECONDS, PROBES_MAX
from tests.e2e.disturbed import ORDER
from tests.e2e.services import Services, services
from tests.support.databases import Databases
from tests.support.faults import kill, paused
from tests.support.servers import Servers
from tests.support.simulators import Simulator
from tests.support.waiting import wait_until

KILLS = int(os.environ.get("KILLS", "3"))
CONCURRENCY = 1_000 if KILLS > 3 else 400
CALLS = CONCURRENCY // 2
"""Calls in flight before each kill. New orders have a little more room than this. The rest is for voids and retries."""
ORDERS = 2 * CONCURRENCY if KILLS > 3 else CONCURRENCY
"""Orders placed before each kill."""
CALL_SECONDS = 1.0
CANCELLED_SHARE = 0.1
CLIENTS = 8
SETTLE_SECONDS = 180
SETTINGS = {
    "PAYMENT_PROVIDER": "simulator",
    "PAYMENT_CONCURRENCY": str(CONCURRENCY),
    "PAYMENT_TIMEOUT_SECONDS": "3",
    "PAYMENT_RETRY_BASE_SECONDS": "0.05",
    "PAYMENT_RETRY_MAX_SECONDS": "1",
    "PAYMENT_MAX_ATTEMPTS": "100",
    "RESTARTS_PER_MINUTE": "1000",
    # The group gives the partitions of a killed worker to the restarted one after this time.
    "KAFKA_OPTIONS": "session.timeout.ms=6000",
}


class Payments:
    """The running services with their simulator, and the orders that a test has placed."""

    def __init__(self, running: Services) -> None:
        self.running = running
        self.simulator = Simulator(running.system.urls["PAYMENT_SIMULATOR_URL"])
        self.client = httpx.Client(base_url=running.base_url, timeout=30)
        self.connection = psycopg.connect(running.postgres_url, autocommit=True)
        self.placed: list[str] = []

    def place(self, number: int) -> list[str]:
        """Place orders from several clients, and return their ids. Each is accepted."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda _: self.client.post("/orders", json=ORDER), range(number)))
        assert {answer.status_code for answer in answers} == {201}
        ids = [answer.json()["orderId"] for answer in answers]
        self.placed += ids
        return ids

    def cancel(self, order_id: str) -> None:
        """Cancel an order in any state."""
        assert self.client.post(f"/orders/{order_id}/cancel").status_code == 202

    def figure(self, name: str) -> float:
        """Return the sum of a metric of payment-worker over its labels. 0 while it does not answer."""
        try:
            samples = self.running.figures("payment-worker")
        except httpx.TransportError:
            return 0
        return sum(value for (sample, _), value in samples.items() if sample == name)

    def status(self, word: str) -> str:
        """Return the line of `orderstream status` that begins with these words."""
        lines = self.running.command("status").splitlines()
        return next((line for line in reversed(lines) if line.startswith(word)), "")

    def count(self, query: str) -> int:
        """Return the number that a query returns."""
        row = self.connection.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def settled(self) -> Counter[str]:
        """Wait until every order is settled and compensated. Every promise must hold. Return the statuses."""
        wait_until(lambda: under_way(self.connection).is_quiet, SETTLE_SECONDS, "every order is settled")
        assert "ok   p2_provider_ledger" in self.running.command("audit", "--grace", "0")
        rows = self.connection.execute("SELECT status FROM orders WHERE id = ANY(%s)", (self.placed,)).fetchall()
        assert len(rows) == len(self.placed)
        return Counter(status for (status,) in rows)


@pytest.fixture(scope="module")
def system(
    tmp_path_factory: pytest.TempPathFactory, servers: Servers, databases: Databases, kafka_brokers: str
) -> Iterator[Payments]:
    """One system for both tests."""
    assert kafka_brokers == servers.kafka_brokers
    with services(tmp_path_factory.mktemp("payments"), servers, databases, **SETTINGS) as running:
        running.command("stock", "set", "SKU-1", "10000000")
        payments = Payments(running)
        with payments.client, payments.connection:
            yield payments


@pytest.fixture
def payments(system: Payments) -> Iterator[Payments]:
    """The system. After the test its provider has no fault."""
    system.placed = []
    yield system
    system.simulator.change_faults(latencyMs=0, down=False)


@pytest.mark.timeout(120 + 60 * KILLS)
def test_the_provider_charges_once_although_payment_worker_is_killed_with_calls_in_flight(payments: Payments) -> None:
    chance, pause = random.Random(), threading.Event()
    payments.simulator.change_faults(latencyMs=1_000 * CALL_SECONDS)
    in_flight = []
    for number in range(KILLS):
        # All calls begin at once when the worker continues.
        payments.running.system.await_restart("payment-worker")
        with paused(payments.running.system, "payment-worker"):
            ids = payments.place(ORDERS)
        wait_until(lambda: payments.figure("orderstream_provider_calls_in_flight") >= CALLS, 90, f"{CALLS} calls run")
        with ThreadPoolExecutor(CLIENTS) as pool:
            cancels = [pool.submit(payments.cancel, order_id) for order_id in ids if chance.random() < CANCELLED_SHARE]
            pause.wait(chance.random() * CALL_SECONDS)
            in_flight.append(payments.figure("orderstream_provider_calls_in_flight"))
            before = payments.running.system.pid("payment-worker")
            kill(payments.running.system, "payment-worker")
            for cancel in cancels:
                cancel.result()
        wait_until(lambda: payments.running.system.is_back("payment-worker", before), 60, f"restart {number}")  # noqa: B023
    payments.simulator.change_faults(latencyMs=0)
    statuses = payments.settled()
    print(f"{KILLS} kills with {in_flight} calls in flight: {dict(statuses)}")
    assert set(statuses) == {"CONFIRMED", "CANCELLED"}


PENDING = "SELECT count(*) FROM payments WHERE state = 'PENDING'"
FIRST = 20
"""Orders whose calls open the breaker."""
SHORT_OPENINGS = 3
"""Openings before their time has doubled to its limit."""
WAITING = 300


def test_while_the_provider_is_down_new_orders_wait_in_kafka_and_none_fails(payments: Payments) -> None:
    payments.simulator.change_faults(down=True)
    since = time.monotonic()
    payments.place(FIRST)
    wait_until(lambda: "down since" in payments.status("payment provider"), 30, "the status says that it is down")
    assert payments.figure("orderstream_provider_breaker_open") > 0
    assert payments.figure("orderstream_provider_down_seconds") > 0

    payments.place(WAITING)
    wait_until(lambda: payments.figure("orderstream_paused_partitions") > 0, 30, "partitions are paused")
    wait_until(lambda: _lag_of_created(payments) >= WAITING - _called_at_most(since), 30, "the orders wait as lag")
    assert payments.count(PENDING) <= _called_at_most(since), "few orders wait as rows"

    payments.simulator.change_faults(down=False)
    assert payments.settled() == {"CONFIRMED": FIRST + WAITING}
    wait_until(lambda: payments.status("payment provider").startswith("payment provider     answers"), 30, "it is up")
    assert payments.figure("orderstream_provider_down_seconds") == 0


def _called_at_most(since: float) -> float:
    """Return how many orders may have rows: those that opened the breaker, and the probes after each opening."""
    openings = SHORT_OPENINGS + (time.monotonic() - since) / (OPEN_MAX_SECONDS / 2)
    return FIRST + PROBES_MAX * openings


def _lag_of_created(payments: Payments) -> int:
    """Return how many records of order.created the status shows as lag of payment-worker."""
    words = payments.status("payment-worker ").replace("(", "").replace(")", "").replace(",", "").split()
    return int(words[words.index("order.created.v1") - 2]) if "order.created.v1" in words else 0
