"""`make bench-low`: measures how fast orders settle, and what an order costs, at 1, 40 and 200 orders per second.

It starts its own system, warms it up, and then measures each load in turn, and the system without orders. The costs
are counted per order: CPU of each process, how often its threads slept and were woken, transactions and WAL. The
figures are only reported. If an order stays open or is refused, the exit code is 1.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import psycopg
from msgspec import Struct, structs

from orderstream.settings import SERVICES
from tests.load.bench import checks, counters, load
from tests.load.bench.counters import Usage
from tests.load.bench.generator_job import Report
from tests.load.bench.smoke import SKU, STOCKED, await_settled
from tests.load.system import BENCH_DIR, AlreadyRunningError, exclusive_system, say
from tests.support.system import System

RATES = (1, 40, 200)
SECONDS = 15
IDLE_SECONDS = 15
WARM_UP_SECONDS = 30
WARM_UP_RATE = 400

SETTLE_TIMES = """
SELECT percentile_cont(ARRAY[0.5, 0.95, 0.99, 1])
       WITHIN GROUP (ORDER BY extract(epoch FROM updated_at - created_at)::float8 * 1000)
FROM orders WHERE user_id = %s
"""


class Sample(Struct, frozen=True):
    """Totals until now. `woken` has the voluntary context switches of all threads of each process.

    The process of `up` itself counts as `up`.
    """

    used: Usage
    woken: Mapping[str, int]
    at: float


class Row(Struct, frozen=True):
    """The figures of one load. `settle_ms` has the percentiles 50, 95, 99 and 100 in Postgres. Costs are totals."""

    rate: float
    orders: int
    settle_ms: Sequence[float]
    post_ms: Sequence[float]
    used: Usage
    woken: Mapping[str, int]
    seconds: float
    problems: Sequence[str]


def measure(system: System, connection: psycopg.Connection, rate: float, seconds: float) -> Row:
    """Place `rate` orders per second, wait until they have settled, and return the figures. 0: place no orders."""
    user = f"bench-low-{rate:g}"
    before = _sample(system, connection)
    report = _idle(seconds) if not rate else _load(system, user, rate, seconds)
    problems = await_settled(connection)
    after = _sample(system, connection)
    if report.refused or report.unanswered:
        problems.append(f"at {rate:g}/s, {report.refused} orders were refused and {report.unanswered} unanswered")
    times = connection.execute(SETTLE_TIMES, (user,)).fetchone()
    return Row(
        rate=rate,
        orders=report.accepted,
        settle_ms=times[0] if times and times[0] else (),
        post_ms=report.latency_ms,
        used=after.used.since(before.used),
        woken={name: woken - before.woken.get(name, 0) for name, woken in after.woken.items()},
        seconds=after.at - before.at,
        problems=problems,
    )


def _load(system: System, user: str, rate: float, seconds: float) -> Report:
    base_url = system.urls["BASE_URL"]
    with load.paced(base_url, load.orders(base_url, user, [SKU]), rate, seconds) as generator:
        return generator.ends()


def _idle(seconds: float) -> Report:
    time.sleep(seconds)
    return Report(
        accepted=0, refused=0, unanswered=0, statuses={}, latency_ms=(), late_ms=(), seconds=seconds, cpu_seconds=0.0
    )


def _sample(system: System, connection: psycopg.Connection) -> Sample:
    pids = system.pids
    assert system.running is not None
    up = system.running.process.pid
    used = counters.usage(pids, connection)
    # Its children have entries of their own.
    cpu_seconds = {**used.cpu_seconds, "up": sum(psutil.Process(up).cpu_times()[:2])}
    woken = {name: sum(map(_switches, _family(pid))) for name, pid in pids.items()} | {"up": _switches(up)}
    return Sample(structs.replace(used, cpu_seconds=cpu_seconds), woken, time.monotonic())


def _family(pid: int) -> list[int]:
    """Return the pids of a process and of its descendants."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def _switches(pid: int) -> int:
    """Return the voluntary context switches of all threads of a process that run now."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            text = status.read_text(encoding="ascii", errors="replace")
        except OSError:
            continue  # the thread has ended
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("voluntary_ctxt"))
    return total


def memory_mib(system: System) -> tuple[float, float]:
    """Return the memory (PSS) of the five services and of all processes of the system."""
    services, everything = 0.0, 0.0
    for child in system.children.values():
        pss = sum(psutil.Process(pid).memory_full_info().pss for pid in _family(child.pid)) / 2**20
        everything += pss
        services += pss if child.name.startswith(SERVICES) else 0.0
    return services, everything


def table(rows: Sequence[Row]) -> str:
    """Return a table with a column for each load."""
    names = sorted(rows[0].used.cpu_seconds)
    heads = [f"{row.rate:g}/s" if row.rate else "idle" for row in rows]
    lines: list[tuple[str, list[str]]] = [
        ("settle p50 / p95 / p99 / max, ms", [_words(row.settle_ms) for row in rows]),
        ("POST p50 / p95 / p99 / p99.9 / max, ms", [_words(row.post_ms) for row in rows]),
        ("CPU of all processes, % of a core", [f"{_cpu(row) / row.seconds:.1%}" for row in rows]),
        ("CPU per order, ms", [_per_order(row, _cpu(row) * 1e3) for row in rows]),
        *(
            (f"CPU per order, {name}, ms", [_per_order(r, r.used.cpu_seconds[name] * 1e3) for r in rows])
            for name in names
        ),
        *(
            (f"CPU per second, {name}, ms", [f"{r.used.cpu_seconds[name] * 1e3 / r.seconds:.2f}" for r in rows])
            for name in names
        ),
        *((f"wake-ups per second, {name}", [f"{r.woken[name] / r.seconds:.0f}" for r in rows]) for name in names),
        *((f"wake-ups per order, {name}", [_per_order(r, r.woken[name]) for r in rows]) for name in names),
        ("transactions per order", [_per_order(row, row.used.transactions) for row in rows]),
        ("transactions per second", [f"{row.used.transactions / row.seconds:.1f}" for row in rows]),
        ("WAL per order, bytes", [_per_order(row, row.used.wal_bytes) for row in rows]),
    ]
    shown = [f"| {name} | {' | '.join(values)} |" for name, values in lines]
    return "\n".join([f"| figure | {' | '.join(heads)} |", "|---" * (len(rows) + 1) + "|", *shown])


def _cpu(row: Row) -> float:
    return sum(row.used.cpu_seconds.values())


def _per_order(row: Row, total: float) -> str:
    return f"{total / row.orders:.2f}" if row.orders else ""


def _words(milliseconds: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in milliseconds)


def main(rates: Sequence[float], seconds: float, warm_up_seconds: float) -> int:
    """Measure the rates in turn, print the table, and return the exit code."""
    with (
        exclusive_system(BENCH_DIR) as system,
        psycopg.connect(system.urls["POSTGRES_URL"], autocommit=True) as connection,
    ):
        system.command("stock", "set", SKU, str(STOCKED))
        say(f"Warming up for {warm_up_seconds:g} s")
        _load(system, "bench-low-warm-up", WARM_UP_RATE, warm_up_seconds)
        await_settled(connection)
        rows = []
        for rate in rates:
            say(f"Measuring {rate:g} orders/s" if rate else "Measuring without orders")
            rows.append(measure(system, connection, rate, seconds))
        services, everything = memory_mib(system)
        problems = [problem for row in rows for problem in row.problems]
        problems += checks.stock(connection, SKU, STOCKED)
    print(table(rows))
    print(f"\nMemory (PSS): {services:.0f} MiB of the five services, {everything:.0f} MiB of everything")
    print(f"Check: {'; '.join(problems) or 'passed'}")
    return 1 if problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default=",".join(map(str, (0, *RATES))), help="orders per second; 0: no orders")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--warm-up", type=float, default=WARM_UP_SECONDS)
    given = parser.parse_args()
    try:
        sys.exit(main([float(rate) for rate in given.rates.split(",")], given.seconds, given.warm_up))
    except AlreadyRunningError as error:
        sys.exit(str(error))
