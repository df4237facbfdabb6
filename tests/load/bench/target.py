"""A running system under load: places orders, waits until they settle, and measures what they took.

It knows a system only by its HTTP port, its tables and its processes. So it measures all contestants in the same way.
"""

import math
import os
import time
from collections.abc import Sequence

import psycopg
from msgspec import Struct

from tests.load.bench import checks, counters, load
from tests.load.bench.counters import Usage
from tests.load.bench.generator_job import Report
from tests.load.bench.load import Load
from tests.load.bench.peers.contestant import Running

SKU_PREFIX = "BENCH-"
SKU = f"{SKU_PREFIX}1"
STOCKED = 1_000_000_000
SETTLE_LIMIT_SECONDS = 60.0
"""Time that the last orders of a phase have to settle. Those that are left after it are reported."""
TOLD_SECONDS = 0.05
"""How often a load with a limit of orders in flight is told how many of them have settled."""
_POLL_SHARE = 20
"""A count of settled orders is repeated after at least this many times its own duration, so that it costs little."""

_SETTLED = """
SELECT count(*) FROM orders WHERE user_id = %s AND id > %s AND status IN ('CONFIRMED', 'FAILED', 'CANCELLED')
"""
_FIGURES = """
SELECT count(*), extract(epoch FROM max(updated_at) - min(created_at))::float8,
       percentile_cont(ARRAY[0.5, 0.99])
           WITHIN GROUP (ORDER BY extract(epoch FROM updated_at - created_at)::float8 * 1000)
FROM orders WHERE user_id = %s AND id > %s AND status IN ('CONFIRMED', 'FAILED', 'CANCELLED')
"""


class Phase(Struct, frozen=True):
    """What a load did. `seconds` passed from the first POST until the last of `settled` orders settled.

    `left` is the number of accepted orders that were not settled at the end of the limit. Then `seconds` is the time
    until the limit. `settle_ms` has the percentiles 50 and 99.
    """

    report: Report
    used: Usage
    settled: int
    left: int
    seconds: float
    settle_ms: Sequence[float]

    @property
    def settled_per_second(self) -> float:
        """The rate at which orders settled, with the time that the last ones took."""
        return self.settled / self.seconds if self.seconds else math.nan

    @property
    def cpu_us(self) -> dict[str, float]:
        """The CPU of each process for one settled order, in microseconds."""
        return {name: seconds / max(1, self.settled) * 1e6 for name, seconds in self.used.cpu_seconds.items()}

    @property
    def others_share(self) -> float:
        """The share of the used CPU that programs outside of the benchmark used."""
        ours = sum(self.used.cpu_seconds.values()) + self.report.cpu_seconds
        return max(0.0, 1 - ours / self.used.machine_seconds) if self.used.machine_seconds else 0.0


class Target:
    """A running system, with the problems that were found in its books until now.

    `connections` is the number of connections of a load that saturates it.
    """

    def __init__(self, running: Running, connection: psycopg.Connection, connections: int) -> None:
        self.running = running
        self.connection = connection
        self.connections = connections
        self.problems: list[str] = []
        self._users: dict[str, Report] = {}

    def stock(self, skus: Sequence[str] = (SKU,)) -> None:
        """Stock these SKUs, whose names begin with SKU_PREFIX. They must not exist."""
        with self.connection.cursor() as cursor, cursor.copy("COPY inventory (sku, available) FROM STDIN") as copy:
            for sku in skus:
                copy.write_row((sku, STOCKED))

    def requests(self, user: str, skus: Sequence[str] = (SKU,), lines: int = 1) -> list[bytes]:
        """Return requests that place orders of `user`."""
        return load.orders(self.running.base_url, user, skus, lines)

    def pace(
        self,
        user: str,
        rate: float,
        seconds: float,
        *,
        limit_seconds: float = SETTLE_LIMIT_SECONDS,
        flushes_first: bool = True,
    ) -> Phase:
        """Place orders of `user` at a fixed rate, and wait until they settle.

        If `flushes_first`, all files that earlier loads have written are flushed to disk before. Otherwise Linux writes
        them during the load, and commits wait for the disk.
        """
        requests = self.requests(user)
        if flushes_first:
            os.sync()
        after, before = self.last_id(), self._usage()
        with load.paced(self.running.base_url, requests, rate, seconds) as generator:
            report = generator.ends()
        return self._phase(user, after, report, before, limit_seconds)

    def saturate(
        self,
        user: str,
        seconds: float,
        *,
        in_flight: int | None = None,
        requests: Sequence[bytes] | None = None,
        limit_seconds: float = SETTLE_LIMIT_SECONDS,
    ) -> Phase:
        """Place orders of `user` as fast as they are answered, and wait until they settle.

        There are `connections` connections, and each carries one order at a time. If `in_flight` is given, at most that
        many orders are not settled at a time.
        """
        after, before = self.last_id(), self._usage()
        with load.saturating(
            self.running.base_url,
            self.requests(user) if requests is None else requests,
            connections=self.connections,
            seconds=seconds,
            in_flight_max=in_flight,
        ) as generator:
            if in_flight is not None:
                self._tell_settled(generator, user, after)
            report = generator.ends()
        return self._phase(user, after, report, before, limit_seconds)

    def check(self) -> list[str]:
        """Compare the tables with the answers to the loads since the last check, and return the problems since then."""
        problems, self.problems = self.problems, []
        for user, report in self._users.items():
            problems += checks.orders(self.connection, user, report) + checks.decisions(self.connection, user)
        self._users.clear()
        return problems + checks.stocks(self.connection, f"{SKU_PREFIX}%", STOCKED)

    def _usage(self) -> Usage:
        return counters.usage(self.running.processes(), self.connection)

    def last_id(self) -> str:
        """Return an id that is smaller than those of all later orders. It limits how many rows a count reads."""
        return ""

    def _settled(self, user: str, after: str) -> int:
        row = self.connection.execute(_SETTLED, (user, after)).fetchone()
        assert row is not None
        return int(row[0])

    def _tell_settled(self, generator: Load, user: str, after: str) -> None:
        while generator.runs:
            began = time.monotonic()
            generator.tell_settled(self._settled(user, after))
            time.sleep(max(TOLD_SECONDS, (time.monotonic() - began) * _POLL_SHARE))

    def _phase(self, user: str, after: str, report: Report, before: Usage, limit_seconds: float) -> Phase:
        self._users[user] = report
        self._await_settled(user, after, report.accepted, limit_seconds)
        used = self._usage().since(before)
        row = self.connection.execute(_FIGURES, (user, after)).fetchone()
        assert row is not None
        settled, seconds, settle_ms = row
        left = max(0, report.accepted - settled)
        if left:
            self.problems.append(f"{user}: {left} of {report.accepted} orders did not settle in {limit_seconds:g} s")
            seconds = report.seconds + limit_seconds
        return Phase(report, used, settled, left, seconds or 0.0, settle_ms or (math.nan, math.nan))

    def _await_settled(self, user: str, after: str, accepted: int, limit_seconds: float) -> None:
        deadline = time.monotonic() + limit_seconds
        while True:
            began = time.monotonic()
            if self._settled(user, after) >= accepted or began > deadline:
                return
            time.sleep(max(TOLD_SECONDS, (time.monotonic() - began) * _POLL_SHARE))
