"""One run of `make bench-provider`: its system, the loads on it, and what it measured so far."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
from msgspec import Struct

from orderstream.payment_simulator.faults import Faults
from tests.load.bench import checks, counters, load
from tests.load.bench.counters import Usage
from tests.load.bench.generator_job import Report
from tests.load.bench.load import Load
from tests.load.bench.smoke import SKU, await_settled
from tests.load.system import say
from tests.support.simulators import Simulator
from tests.support.system import System

_SETTLE_MS = """
SELECT percentile_cont(ARRAY[0.5, 0.99, 1.0])
           WITHIN GROUP (ORDER BY extract(epoch FROM o.updated_at - o.created_at)::float8 * 1000),
       count(*)
FROM orders AS o JOIN payments AS p ON p.order_id = o.id
WHERE o.user_id = %s AND o.status = 'CONFIRMED' AND p.attempts BETWEEN %s AND %s
"""
_STATUSES = "SELECT status, count(*) FROM orders WHERE user_id = %s GROUP BY status"
_ATTEMPTS_MAX = 1_000
"""More than PAYMENT_MAX_ATTEMPTS can be."""


class Cost(Struct, frozen=True):
    """What a load cost. `seconds` passed from its begin until its orders settled."""

    user: str
    report: Report
    used: Usage
    seconds: float


class SettleTimes(Struct, frozen=True):
    """The settle times of confirmed orders, in milliseconds. All are NaN without orders."""

    p50: float
    p99: float
    longest: float
    orders: int


class ProviderBench:
    """The system and its simulator, with the figures, costs and problems of the rows that ran.

    If `quick`, every load is short: this checks the benchmark itself, and its figures mean nothing.
    """

    def __init__(self, system: System, connection: psycopg.Connection, *, quick: bool) -> None:
        self.system = system
        self.connection = connection
        self.quick = quick
        self.simulator = Simulator(system.urls["PAYMENT_SIMULATOR_URL"])
        self.costs: list[Cost] = []
        self.problems: list[str] = []

    def length(self, full: int, quick: int) -> int:
        """Return a duration or a number: `full`, or `quick` in a quick run."""
        return quick if self.quick else full

    def set_faults(self, **members: Any) -> None:
        """Set the faults of the simulator: these members, and harmless ones otherwise."""
        self.simulator.change_faults(**(msgspec.to_builtins(Faults()) | members))

    @contextmanager
    def orders(self, user: str, rate: float, seconds: float, settle_limit_seconds: float = 120) -> Iterator[None]:
        """Place orders of `user` in the background while the block runs, then wait until they settle.

        Records the cost. An accepted order that does not exist, or that stays open, is a problem.
        """
        say(f"Placing {rate:g} orders/s of {user} for {seconds:g} s")
        began = time.monotonic()
        before = self._usage()
        base_url = self.system.urls["BASE_URL"]
        with load.paced(base_url, load.orders(base_url, user, [SKU]), rate, seconds) as generator:
            yield
            report = generator.ends()
        self.problems += await_settled(self.connection, settle_limit_seconds)
        self.costs.append(Cost(user, report, self._usage().since(before), time.monotonic() - began))
        # A refused order may exist: the gateway answers 503 if it does not know the outcome of a commit.
        uncertain = report.refused + report.unanswered
        self.problems += checks.existence(self.connection, user, report.accepted, uncertain)

    def place(self, user: str, rate: float, seconds: float) -> None:
        """Place orders, and wait until they settle."""
        with self.orders(user, rate, seconds):
            pass

    def cancels(self, order_ids: Sequence[str], rate: float) -> Load:
        """Cancel orders at a fixed rate, in the background."""
        base_url = self.system.urls["BASE_URL"]
        return load.paced(base_url, load.cancels(base_url, order_ids), rate, len(order_ids) / rate, expected=202)

    def settle_times(self, user: str, attempts_min: int = 0, attempts_max: int = _ATTEMPTS_MAX) -> SettleTimes:
        """Return the settle times of the orders of `user` whose payment took a number of attempts in this range."""
        row = self.connection.execute(_SETTLE_MS, (user, attempts_min, attempts_max)).fetchone()
        assert row is not None
        times, orders = row
        p50, p99, longest = times or (float("nan"),) * 3
        return SettleTimes(p50, p99, longest, orders)

    def statuses(self, user: str) -> dict[str, int]:
        """Return the number of orders of `user` in each status."""
        return dict(self.connection.execute(_STATUSES, (user,)).fetchall())

    def expect_all(self, what: str, report: Report) -> None:
        """Note a problem if some requests were not accepted."""
        if report.refused or report.unanswered:
            self.problems.append(f"{what}: {report.refused} refused, {report.unanswered} unanswered")

    def await_zero(self, statement: str, user: str, limit_seconds: float, what: str) -> None:
        """Wait until a number in the database is 0, and note a problem if it is not after the limit."""
        deadline = time.monotonic() + limit_seconds
        while left := self.value(statement, user):
            if time.monotonic() > deadline:
                self.problems.append(f"{left} {what} after {limit_seconds:g} s")
                return
            time.sleep(0.1)

    def value(self, statement: str, *parameters: object) -> Any:
        """Return the only value that a statement returns."""
        row = self.connection.execute(statement.encode(), parameters).fetchone()
        assert row is not None
        return row[0]

    def _usage(self) -> Usage:
        return counters.usage(self.system.pids, self.connection)
