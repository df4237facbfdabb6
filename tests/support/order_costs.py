"""What orders cost: a whole system whose PostgreSQL and Kafka count what each process asks of them.

A proxy in front of PostgreSQL counts statements and round trips, and Kafka logs its requests. These counts do not
depend on the speed of the machine. tests/e2e/test_cost_of_an_order.py limits them, and `make bench` shows them.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from msgspec import Struct

from orderstream.audit.under_way import under_way
from orderstream.settings import SERVICES
from tests.load.bench import load
from tests.support.kafka_counts import LoggingKafka, requests
from tests.support.postgres_counts import PostgresCounts, counted
from tests.support.servers import Servers, servers
from tests.support.system import System, system
from tests.support.waiting import wait_until

SKU = "BENCH-1"
STOCKED = 1_000_000
FASTER_THAN_ANSWERED = 20_000
"""Orders per second with which all 256 connections of the load wait for their answers all the time."""
SETTLE_SECONDS = 90
IDLE_SECONDS = 60
_WRITTEN = """
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
       (SELECT coalesce(sum(fsyncs), 0)::bigint FROM pg_stat_io)
"""


class Counts(Struct, frozen=True):
    """Totals since the start. Statements, round trips and wake-ups are by process, requests to Kafka by client."""

    statements: Counter[str]
    round_trips: Counter[str]
    requests: Counter[str]
    wake_ups: Counter[str]
    wal_bytes: int
    fsyncs: int
    heartbeats: int

    def since(self, before: "Counts") -> "Counts":
        """Return the difference to the earlier totals `before`."""
        return Counts(
            self.statements - before.statements,
            self.round_trips - before.round_trips,
            self.requests - before.requests,
            self.wake_ups - before.wake_ups,
            self.wal_bytes - before.wal_bytes,
            self.fsyncs - before.fsyncs,
            self.heartbeats - before.heartbeats,
        )


class Meter:
    """Reads all counters of one running system, and places orders on it."""

    def __init__(self, running: System, given: Servers, asked: PostgresCounts, connection: psycopg.Connection) -> None:
        self._running = running
        self._log = given.kafka.log
        self._asked = asked
        self._connection = connection
        self.postgres_url = given.postgres_url

    def counts(self) -> Counts:
        """Return the totals until now."""
        found = requests(self._log)
        sent = Counter[str]()
        for (client, _), number in found.items():
            sent[client] += number
        row = self._connection.execute(_WRITTEN).fetchone()
        assert row is not None
        return Counts(
            statements=_by_process(self._asked.statements),
            round_trips=_by_process(self._asked.round_trips),
            requests=Counter({client: number for client, number in sent.items() if client in SERVICES}),
            wake_ups=Counter({name: _wake_ups(pid) for name, pid in self._running.service_pids().items()}),
            wal_bytes=row[0],
            fsyncs=row[1],
            heartbeats=sum(number for (_, kind), number in found.items() if kind == "BROKER_HEARTBEAT"),
        )

    def placed(self, rate: float, orders: int) -> Counts:
        """Place orders of SKU at this rate, wait until nothing is under way, and return what they used."""
        before, base_url = self.counts(), self._running.base_url
        with load.paced(base_url, load.orders(base_url, "u-cost", [SKU]), rate, orders / rate) as placing:
            report = placing.ends()
        assert report.accepted == orders, f"{report.accepted} of {orders} orders were accepted: {report.statuses}"
        wait_until(lambda: under_way(self._connection).is_quiet, SETTLE_SECONDS, "all orders settle")
        return self.counts().since(before)

    def idle(self, heartbeats: int) -> Counts:
        """Wait for this number of heartbeats of the broker, and return what the system used without orders."""
        before = self.counts()
        enough = before.heartbeats + heartbeats
        wait_until(lambda: self.counts().heartbeats >= enough, IDLE_SECONDS, "the broker sends its heartbeats")
        return self.counts().since(before)


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
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = (thread / "status").read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


@contextmanager
def metered(root: Path) -> Iterator[Meter]:
    """Start a system with counters and empty data below `root`. Afterwards, stop it and remove the data."""
    with ExitStack() as stack:
        given = stack.enter_context(servers(root / "servers", LoggingKafka))
        asked = stack.enter_context(counted(given.postgres_url))
        running = stack.enter_context(system(root))
        environment = {**given.environment, "POSTGRES_URL": asked.url}
        up = running.up(**environment).serves()
        stack.enter_context(up.process.watched("orderstream up", lambda: up.said))
        running.command("stock", "add", SKU, str(STOCKED), **environment)
        connection = stack.enter_context(psycopg.connect(given.postgres_url, autocommit=True))
        yield Meter(running, given, asked, connection)
