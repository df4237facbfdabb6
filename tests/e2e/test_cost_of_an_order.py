"""What one order costs in statements, round trips, requests to Kafka and WAL, and what an idle system does.

These counters do not depend on the speed of the machine. docs/performance.md shows the cost of an order line by line.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from msgspec import Struct

from orderstream.audit.under_way import under_way
from tests.load.bench import load
from tests.support.kafka_counts import LoggingKafka, requests
from tests.support.postgres_counts import PostgresCounts, counted
from tests.support.servers import Servers, servers
from tests.support.system import System, system
from tests.support.waiting import wait_until

SKU = "BENCH-1"
STOCKED = 1_000_000
WARM_UP, PACED, BURST = 500, 200, 4_000
"""Orders of each phase. In the burst, 256 connections wait for their answers all the time."""
RATE, FASTER_THAN_ANSWERED = 40, 20_000
HEARTBEATS = 12
"""An idle system is watched for this number of heartbeats of the broker, which sends two per second."""
SETTLE_SECONDS = 90
_WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
_SERVICES = ("api-gateway", "outbox-relay", "payment-worker", "inventory-worker", "order-service")

IDLE_STATEMENTS: dict[str, float] = {
    "api-gateway": 1,
    "outbox-relay": 25,
    "payment-worker": 60,
    "inventory-worker": 1,
    "order-service": 30,
}
IDLE_REQUESTS: dict[str, float] = {"outbox-relay": 1, "payment-worker": 22, "inventory-worker": 8, "order-service": 8}
IDLE_WAKE_UPS: dict[str, float] = {
    "api-gateway": 10,
    "outbox-relay": 60,
    "payment-worker": 120,
    "inventory-worker": 65,
    "order-service": 80,
}
"""Limits for each second, about twice what was measured. A timer that polls every 10 ms adds 100.

The statements of the two workers include one sweep of their timers, which comes every 10 s.
"""


class Counts(Struct, frozen=True):
    """Totals since the start. Statements, round trips and wake-ups are by process, requests to Kafka by client."""

    statements: Counter[str]
    round_trips: Counter[str]
    requests: Counter[str]
    wake_ups: Counter[str]
    wal_bytes: int
    heartbeats: int

    def since(self, before: "Counts") -> "Counts":
        """Return the difference to the earlier totals `before`."""
        return Counts(
            self.statements - before.statements,
            self.round_trips - before.round_trips,
            self.requests - before.requests,
            self.wake_ups - before.wake_ups,
            self.wal_bytes - before.wal_bytes,
            self.heartbeats - before.heartbeats,
        )


class Measured(Struct, frozen=True):
    """What each phase used."""

    idle: Counts
    paced: Counts
    burst: Counts


class _Meter:
    """Reads all counters of one system."""

    def __init__(self, running: System, given: Servers, asked: PostgresCounts, connection: psycopg.Connection) -> None:
        self._running = running
        self._log = given.kafka.log
        self._asked = asked
        self._connection = connection

    def counts(self) -> Counts:
        """Return the totals until now."""
        found = requests(self._log)
        sent = Counter[str]()
        for (client, _), number in found.items():
            sent[client] += number
        row = self._connection.execute(_WAL).fetchone()
        assert row is not None
        return Counts(
            statements=_by_process(self._asked.statements),
            round_trips=_by_process(self._asked.round_trips),
            requests=Counter({client: number for client, number in sent.items() if client in _SERVICES}),
            wake_ups=Counter({name: _wake_ups(pid) for name, pid in self._running.service_pids().items()}),
            wal_bytes=row[0],
            heartbeats=sum(number for (_, kind), number in found.items() if kind == "BROKER_HEARTBEAT"),
        )

    def settled(self) -> None:
        """Wait until no order is under way."""
        wait_until(lambda: under_way(self._connection).is_quiet, SETTLE_SECONDS, "all orders settle")


def _by_process(counts: Counter[str]) -> Counter[str]:
    """Add the connections of each process. The gateway names each of its own."""
    found = Counter[str]()
    for name, number in counts.items():
        found[name.partition(":")[0]] += number
    return found


def _wake_ups(pid: int) -> int:
    """Return how often the threads of the process have begun to wait. A thread that has ended does not count."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            lines = (thread / "status").read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """One system with counters: idle, with 40 orders/s, and with as many orders as it takes."""
    root = tmp_path_factory.mktemp("cost")
    with ExitStack() as stack:
        given = stack.enter_context(servers(root / "servers", LoggingKafka))
        asked = stack.enter_context(counted(given.postgres_url))
        running = stack.enter_context(system(root))
        environment = {**given.environment, "POSTGRES_URL": asked.url}
        up = running.up(**environment).serves()
        stack.enter_context(up.process.watched("orderstream up", lambda: up.said))
        running.command("stock", "add", SKU, str(STOCKED), **environment)
        connection = stack.enter_context(psycopg.connect(given.postgres_url, autocommit=True))
        yield _measure(_Meter(running, given, asked, connection), running.base_url)


def _measure(meter: _Meter, base_url: str) -> Measured:
    def placed(rate: float, orders: int) -> Counts:
        before = meter.counts()
        with load.paced(base_url, load.orders(base_url, "u-cost", [SKU]), rate, orders / rate) as placing:
            assert placing.ends().accepted == orders
        meter.settled()
        return meter.counts().since(before)

    placed(FASTER_THAN_ANSWERED, WARM_UP)
    before = meter.counts()
    wait_until(
        lambda: meter.counts().heartbeats >= before.heartbeats + HEARTBEATS, 60, "the broker sends its heartbeats"
    )
    idle = meter.counts().since(before)
    return Measured(idle, placed(RATE, PACED), placed(FASTER_THAN_ANSWERED, BURST))


def _above(limits: dict[str, float], counts: Counter[str], per: float) -> dict[str, float]:
    """Return the counts that exceed the limit of their process, for each second or order."""
    return {name: number / per for name, number in counts.items() if number / per > limits.get(name, 0)}


def test_an_idle_system_asks_little(measured: Measured) -> None:
    """No timer polls for work: an idle process asks PostgreSQL and Kafka a few times per second."""
    seconds = measured.idle.heartbeats / 2
    assert _above(IDLE_STATEMENTS, measured.idle.statements, seconds) == {}
    assert _above(IDLE_REQUESTS, measured.idle.requests, seconds) == {}
    assert _above(IDLE_WAKE_UPS, measured.idle.wake_ups, seconds) == {}


def test_an_order_at_40_per_second_costs_few_statements_and_requests(measured: Measured) -> None:
    """A process that has an order to itself runs every statement of a batch for it, and no more."""
    paced = measured.paced
    assert sum(paced.statements.values()) / PACED < 30
    assert sum(paced.round_trips.values()) / PACED < 30
    assert sum(paced.requests.values()) / PACED < 15
    assert paced.wal_bytes / PACED < 5_000


def test_many_orders_share_statements_and_requests(measured: Measured) -> None:
    """A statement for each order in any process would add 1 to its figure."""
    burst = measured.burst
    limits = dict.fromkeys(_SERVICES, 0.25)
    assert _above(limits, burst.statements, BURST) == {}
    assert _above(limits, burst.round_trips, BURST) == {}
    assert _above(limits, burst.requests, BURST) == {}
    assert burst.wal_bytes / BURST < 3_600
