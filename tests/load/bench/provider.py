"""`make bench-provider`: measures how orders settle with a payment provider that is slow, silent, pending or down.

It starts a system of its own whose provider is the payment simulator, with one payment-worker, and warms it up. Each
row sets the faults of the simulator and places orders at a fixed rate with an open-loop client, so that a slow system
does not slow the client down. The last row measures the provider in the process, on another system. It prints the
figures with their targets, and the cost of each load. A missed target only says so, because targets depend on the
machine. If orders, payments or stock do not agree with each other, or with the ledger of the provider, the exit code
is 1.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import psycopg

from orderstream.audit.charges import audit_charges
from orderstream.audit.check import audit, table
from orderstream.audit.provider_ledger import Ledger
from tests.load.bench import checks
from tests.load.bench.provider_bench import ProviderBench
from tests.load.bench.provider_figures import Line, cost_table, figure_table, plain
from tests.load.bench.provider_rows import ROWS
from tests.load.bench.smoke import (
    SKU,
    STOCKED,
    WARM_UP_SECONDS,
    await_quiet,
    await_settled,
    place_saturated,
    saturate,
)
from tests.load.system import BENCH_DIR, AlreadyRunningError, exclusive_system, say

IN_PROCESS = "in-process"
SETTINGS = {"PAYMENT_PROVIDER": "simulator", "REPLICAS_PAYMENT_WORKER": "1"}


def main() -> int:
    """Run the rows and return the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", default=",".join((*ROWS, IN_PROCESS)), help="names of rows, separated by commas")
    arguments.add_argument("--quick", action="store_true", help="check the benchmark itself in short time")
    given = arguments.parse_args()
    names = [name.strip() for name in given.rows.split(",") if name.strip()]
    if unknown := [name for name in names if name not in (*ROWS, IN_PROCESS)]:
        arguments.error(f"unknown: {', '.join(unknown)}. The rows are {', '.join((*ROWS, IN_PROCESS))}")
    problems = []
    if simulated := [name for name in names if name in ROWS]:
        problems += _measure(simulated, quick=given.quick)
    if IN_PROCESS in names:
        problems += _measure_in_process(quick=given.quick)
    if given.quick:
        print("The loads were short (QUICK). These figures only show that the benchmark works.")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _measure(names: Sequence[str], *, quick: bool) -> list[str]:
    """Run rows on one system, print their tables, and return the problems."""
    lines: list[Line] = []
    with (
        exclusive_system(BENCH_DIR, **SETTINGS) as system,
        psycopg.connect(system.urls["POSTGRES_URL"], autocommit=True) as connection,
    ):
        system.command("stock", "set", SKU, str(STOCKED))
        bench = ProviderBench(system, connection, quick=quick)
        bench.place("warm-up", 400, bench.length(WARM_UP_SECONDS, 5))
        for name in names:
            row = ROWS[name]
            say(f"Row {name}: {row.provider}, {row.rate}")
            found = row.run(bench)
            lines += [Line(row.provider, row.rate, figure) for figure in found]
            print(figure_table(lines[-len(found) :]), file=sys.stderr, flush=True)
        bench.set_faults()
        problems = bench.problems + await_quiet(connection)
        problems += checks.stock(connection, SKU, STOCKED)
        problems += _audit(system.urls["POSTGRES_URL"], bench.simulator.url)
        costs = bench.costs
    print(figure_table(lines), "", cost_table(costs, os.cpu_count() or 1), "", sep="\n")
    return problems


def _measure_in_process(*, quick: bool) -> list[str]:
    """Measure the provider in the process as `make bench-smoke` does, print the table, and return the problems."""
    with (
        exclusive_system(BENCH_DIR, PAYMENT_PROVIDER="simulated") as system,
        psycopg.connect(system.urls["POSTGRES_URL"], autocommit=True) as connection,
    ):
        system.command("stock", "set", SKU, str(STOCKED))
        seconds = 5 if quick else WARM_UP_SECONDS
        say(f"Warming up for {seconds} s")
        place_saturated(system, "bench-warm-up", seconds)
        problems = await_settled(connection)
        say("Row in-process")
        saturated = saturate(system, connection)
        problems += checks.orders(connection, "bench-saturated", saturated.report)
        problems += checks.stock(connection, SKU, STOCKED)
    orders = max(1, saturated.settled)
    worker = saturated.used.cpu_seconds["payment-worker"] / orders * 1e6
    every = sum(saturated.used.cpu_seconds.values()) / orders * 1e6
    figures = [
        plain("settled orders/s", f"{saturated.settled / saturated.seconds:.0f}" if saturated.seconds else "none"),
        plain("CPU per order: all / payment-worker", f"{every:.0f} / {worker:.0f} us"),
    ]
    lines = [Line("answers at once, in the process", "saturated", figure) for figure in figures]
    print(figure_table(lines), "", sep="\n")
    return problems


def _audit(postgres_url: str, ledger_url: str) -> list[str]:
    """Check every promise and the ledger of the provider, print the table of the audit, and return the breaches."""
    with Ledger(ledger_url) as ledger:
        found = audit(postgres_url, grace_seconds=0) | audit_charges(postgres_url, ledger, grace_seconds=0)
    say(table(found))
    return [
        f"{breach.promise}: {breach.subject}: {breach.detail}" for breaches in found.values() for breach in breaches
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AlreadyRunningError as error:
        sys.exit(str(error))
