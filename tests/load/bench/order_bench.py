"""The stack on which `make bench` measures further rows of OrderStream alone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from orderstream.payment_simulator.faults import Faults
from tests.load.bench.peers.orderstream.contestant import OrderStream, RunningOrderStream
from tests.load.bench.results import RowFigure
from tests.load.bench.target import Phase, Target
from tests.load.system import exclusive_system, say
from tests.support.simulators import Simulator
from tests.support.system import System

WARM_UP_SECONDS = 15
SATURATED_SECONDS = 8


class OrderBench(Target):
    """A running stack. If `quick`, every load is short: this checks the benchmark, and its figures mean little."""

    def __init__(self, system: System, connection: psycopg.Connection, *, quick: bool) -> None:
        super().__init__(RunningOrderStream(system), connection, OrderStream.connections)
        self.system = system
        self.quick = quick
        self._maximum: float | None = None
        self._loads = 0

    def length(self, full: float, quick: float) -> float:
        """Return a duration or a number: `full`, or `quick` in a quick run."""
        return quick if self.quick else full

    def last_id(self) -> str:
        """Return the largest id. The ids of OrderStream begin with the time."""
        row = self.connection.execute("SELECT coalesce(max(id), '') FROM orders").fetchone()
        assert row is not None
        return str(row[0])

    def user(self) -> str:
        """Return a user for the next load."""
        self._loads += 1
        return f"bench-{self._loads}"

    def at_rate(self, rate: float, seconds: float, *, flushes_first: bool = True) -> Phase:
        """Place orders at a fixed rate."""
        say(f"{rate:g} orders/s for {seconds:g} s")
        return self.pace(self.user(), rate, seconds, flushes_first=flushes_first)

    def at_most(self, seconds: float | None = None, skus: Sequence[str] | None = None, lines: int = 1) -> Phase:
        """Place as many orders as the stack accepts."""
        user = self.user()
        requests = self.requests(user, lines=lines) if skus is None else self.requests(user, skus, lines)
        return self.saturate(user, seconds or self.length(SATURATED_SECONDS, 3), requests=requests)

    def maximum(self) -> float:
        """Return how many orders per second settled in a saturated phase on this stack, measured the first time."""
        if self._maximum is None:
            self._maximum = self.at_most().settled_per_second
        return self._maximum

    def set_faults(self, **members: Any) -> None:
        """Set the faults of the payment simulator: these members, and harmless ones otherwise."""
        simulator = Simulator(self.system.urls["PAYMENT_SIMULATOR_URL"])
        simulator.change_faults(**(msgspec.to_builtins(Faults()) | members))

    @contextmanager
    def superuser(self) -> Iterator[psycopg.Connection]:
        """Connect as the superuser, who may leave out the checks of foreign keys of a million rows."""
        with psycopg.connect(self.system.superuser_url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("SET statement_timeout = 0")
            yield connection


@contextmanager
def order_bench(folder: Path, settings: Mapping[str, str], *, quick: bool) -> Iterator[OrderBench]:
    """Start a stack with empty data and warm it up. Afterwards, end it."""
    with (
        exclusive_system(folder, **settings) as system,
        psycopg.connect(system.urls["POSTGRES_URL"], autocommit=True) as connection,
    ):
        connection.execute("SET statement_timeout = 0")
        bench = OrderBench(system, connection, quick=quick)
        bench.stock()
        say("Warming up")
        bench.at_most(bench.length(WARM_UP_SECONDS, 5))
        yield bench


def number(name: str, value: float, unit: str = "", digits: int = 0) -> RowFigure:
    """Return a figure as text."""
    return RowFigure(name, f"{value:,.{digits}f}{' ' if unit else ''}{unit}")


def settle_times(load: str, phase: Phase) -> RowFigure:
    """Return the settle times of a load as text."""
    return RowFigure(f"settle p50 / p99{load}", f"{phase.settle_ms[0]:.1f} / {phase.settle_ms[1]:.1f} ms")


def post_times(load: str, phase: Phase) -> RowFigure:
    """Return the times of POST of a load as text."""
    p50, _, p99, p999, _ = phase.report.latency_ms
    return RowFigure(f"POST p50 / p99 / p99.9{load}", f"{p50:.1f} / {p99:.1f} / {p999:.1f} ms")
