"""`make bench-smoke`: measures how fast orders settle and what an order costs, and checks that no order was lost.

It starts its own system and warms it up, because Kafka's Java compiles for most of a minute. Then a fixed number of
clients place as many orders as they can. After that, 40 orders arrive per second. It prints one table. The figures are
only reported. If orders or stock do not agree with what the clients saw, the exit code is 1.

With `--console`, the console runs too, with one browser on its overview. Compare the figures with those without it, in
turn.
"""

import contextlib
import sys
import time
from collections.abc import Sequence

import psycopg
from msgspec import Struct

from orderstream.audit.under_way import under_way
from tests.load.bench import checks, counters, load
from tests.load.bench.counters import Usage
from tests.load.bench.generator_job import Report
from tests.load.system import BENCH_DIR, AlreadyRunningError, exclusive_system, say
from tests.support.system import System

SKU = "BENCH-1"
STOCKED = 10_000_000
WARM_UP_SECONDS = 45
PACED_RATE = 40
PACED_SECONDS = 15
SATURATED_SECONDS = 20
CLIENTS = 64
SETTLE_LIMIT_SECONDS = 120
COUNTED_MAX = 1_000

SETTLE_TIMES = """
SELECT percentile_cont(ARRAY[0.5, 0.95, 0.99])
       WITHIN GROUP (ORDER BY extract(epoch FROM updated_at - created_at)::float8 * 1000)
FROM orders WHERE user_id = %s
"""
_SETTLED = (
    "SELECT count(*), extract(epoch FROM max(updated_at) - min(created_at))::float8 FROM orders WHERE user_id = %s"
)


class Paced(Struct, frozen=True):
    """The figures of the paced phase. `settle_ms` has the percentiles 50, 95 and 99 of the settle time."""

    report: Report
    settle_ms: Sequence[float]
    used: Usage


class Saturated(Struct, frozen=True):
    """The figures of the saturated phase. `seconds` passed from the first POST until all `settled` orders settled."""

    report: Report
    settled: int
    seconds: float
    used: Usage
    memory_mib: float | None


def main(*, with_console: bool) -> int:
    """Run both phases and return the exit code."""
    with (
        exclusive_system(BENCH_DIR, REPLICAS_CONSOLE="1" if with_console else "0") as system,
        _watched(system) if with_console else contextlib.nullcontext(),
        psycopg.connect(system.urls["POSTGRES_URL"], autocommit=True) as connection,
    ):
        system.command("stock", "set", SKU, str(STOCKED))
        say(f"Warming up for {WARM_UP_SECONDS} s")
        warmed = place_saturated(system, "bench-warm-up", WARM_UP_SECONDS)
        problems = await_settled(connection)
        say(f"Placing orders with {CLIENTS} clients for {SATURATED_SECONDS} s")
        saturated = saturate(system, connection)
        problems += await_settled(connection)
        say(f"Placing {PACED_RATE} orders/s for {PACED_SECONDS} s")
        paced = _paced(system, connection)
        problems += await_settled(connection)
        for user, seen in (("warm-up", warmed), ("paced", paced.report), ("saturated", saturated.report)):
            problems += checks.orders(connection, f"bench-{user}", seen)
        problems += checks.stock(connection, SKU, STOCKED)
    print(_table(paced, saturated, problems))
    return 1 if problems else 0


def _watched(system: System) -> contextlib.AbstractContextManager[None]:
    """Keep a browser on the overview of the console."""
    from tests.load.bench.browser import watching  # noqa: PLC0415 - only this run needs a browser

    return watching(system)


def place_paced(system: System, user: str, rate: float, seconds: float) -> Report:
    """Place orders of SKU for `user` at a fixed rate, and return the report of the generator."""
    base_url = system.urls["BASE_URL"]
    with load.paced(base_url, load.orders(base_url, user, [SKU]), rate, seconds) as generator:
        return generator.ends()


def place_saturated(system: System, user: str, seconds: float) -> Report:
    """Let all clients place orders of SKU for `user` as fast as they are answered, and return the report."""
    base_url = system.urls["BASE_URL"]
    with load.saturating(
        base_url, load.orders(base_url, user, [SKU]), connections=CLIENTS, seconds=seconds
    ) as generator:
        return generator.ends()


def _paced(system: System, connection: psycopg.Connection) -> Paced:
    before = counters.usage(system.pids, connection)
    report = place_paced(system, "bench-paced", PACED_RATE, PACED_SECONDS)
    used = counters.usage(system.pids, connection).since(before)
    row = connection.execute(SETTLE_TIMES, ("bench-paced",)).fetchone()
    return Paced(report, row[0] if row and row[0] else (float("nan"),) * 3, used)


def saturate(system: System, connection: psycopg.Connection) -> Saturated:
    """Let all clients place orders as fast as they are answered, and return the figures."""
    before = counters.usage(system.pids, connection)
    report = place_saturated(system, "bench-saturated", SATURATED_SECONDS)
    memory = counters.services_memory_mib(system.pids)
    await_settled(connection)
    used = counters.usage(system.pids, connection).since(before)
    row = connection.execute(_SETTLED, ("bench-saturated",)).fetchone()
    assert row is not None
    return Saturated(report, row[0], row[1] or 0.0, used, memory)


def await_settled(connection: psycopg.Connection, limit_seconds: float = SETTLE_LIMIT_SECONDS) -> list[str]:
    """Wait until no order is open. Return a line with the number of open orders if some are left after the limit."""
    deadline = time.monotonic() + limit_seconds
    while True:
        open_orders = under_way(connection, COUNTED_MAX).open.number
        if open_orders == 0:
            return []
        if time.monotonic() > deadline:
            return [f"{open_orders} orders are still open after {limit_seconds:g} s"]
        time.sleep(0.1)


def await_quiet(connection: psycopg.Connection) -> list[str]:
    """Wait until all orders are settled and compensated. Return a line if some are not after the limit."""
    deadline = time.monotonic() + SETTLE_LIMIT_SECONDS
    while not (found := under_way(connection, COUNTED_MAX)).is_quiet:
        if time.monotonic() > deadline:
            return [f"not quiet after {SETTLE_LIMIT_SECONDS} s: {found}"]
        time.sleep(0.2)
    return []


def _table(paced: Paced, saturated: Saturated, problems: Sequence[str]) -> str:
    orders = max(saturated.settled, 1)
    used, seen = saturated.used, saturated.report
    at_once = f"{CLIENTS} clients, {SATURATED_SECONDS} s"
    memory = "unknown" if saturated.memory_mib is None else f"{saturated.memory_mib:.0f} MiB"
    rows = [
        (f"settle time at {PACED_RATE}/s, in Postgres (p50 / p95 / p99)", in_words(paced.settle_ms)),
        (f"POST at {PACED_RATE}/s (p50 / p95 / p99 / p99.9)", in_words(paced.report.latency_ms[:4])),
        (f"client late at {PACED_RATE}/s (p50 / p95 / p99)", in_words(paced.report.late_ms[:3])),
        (
            f"settled orders/s ({at_once})",
            f"{saturated.settled / saturated.seconds:.0f}" if saturated.seconds else "none",
        ),
        ("accepted orders/s", f"{seen.accepted / SATURATED_SECONDS:.0f}"),
        ("refused / unanswered", f"{seen.refused} / {seen.unanswered}"),
        (f"POST, {at_once} (p50 / p95 / p99 / p99.9)", in_words(seen.latency_ms[:4])),
        ("memory of the five services (PSS)", memory),
        ("WAL per order", f"{used.wal_bytes / orders:.0f} bytes"),
        ("Postgres transactions per order", f"{used.transactions / orders:.3f}"),
        ("CPU per order, all processes", f"{sum(used.cpu_seconds.values()) / orders * 1e6:.0f} us"),
        *((f"CPU per order, {name}", f"{cpu / orders * 1e6:.0f} us") for name, cpu in sorted(used.cpu_seconds.items())),
        ("CPU per order, load generator", f"{seen.cpu_seconds / orders * 1e6:.0f} us"),
        (f"CPU used by anything else (at {PACED_RATE}/s / saturated)", f"{_others(paced)} / {_others(saturated)}"),
        ("check", "; ".join(problems) or f"passed: {saturated.settled} orders, every 201 CONFIRMED, stock agrees"),
    ]
    return "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _others(phase: Paced | Saturated) -> str:
    """Return the share of the CPU that other programs used. If it is over a few percent, the figures are too low."""
    ours = sum(phase.used.cpu_seconds.values()) + phase.report.cpu_seconds
    return f"{max(0.0, 1 - ours / phase.used.machine_seconds):.0%}"


def in_words(milliseconds: Sequence[float]) -> str:
    """Return times in milliseconds as text."""
    return " / ".join(f"{value:.1f}" for value in milliseconds) + " ms"


if __name__ == "__main__":
    try:
        sys.exit(main(with_console="--console" in sys.argv))
    except AlreadyRunningError as error:
        sys.exit(str(error))
