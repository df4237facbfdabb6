"""`make soak MINUTES=5`: every kind of order during every fault. After all orders are settled, every check must pass.

The payment provider is the simulator, whose faults are switched on and off at random. The checks cover P1 to P11, and
the ledger of the simulator decides about P2. The soak prints one table, and its exit code is 1 if a check fails. RATE
is the number of orders per second. With the same SEED, a run repeats its random choices.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import psycopg

from orderstream.local.processes.state import checkout
from tests.load.bench import counters
from tests.load.soak import checks, faults, provider_faults
from tests.load.soak.client import Client
from tests.load.soak.ledger import Ledger
from tests.load.soak.load import STOCKED, Load
from tests.load.soak.poison import Poisoner
from tests.load.system import AlreadyRunningError, exclusive_system
from tests.support.system import System, free_port

SETTINGS = {
    "REPLICAS_API_GATEWAY": "2",
    "REPLICAS_OUTBOX_RELAY": "2",
    "REPLICAS_PAYMENT_WORKER": "2",
    "REPLICAS_INVENTORY_WORKER": "2",
    "REPLICAS_ORDER_SERVICE": "2",
    "RESTARTS_PER_MINUTE": "1000",
    "PAYMENT_PROVIDER": "simulator",
    "PAYMENT_TIMEOUT_SECONDS": "3",
    "PAYMENT_PENDING_LIMIT_MINUTES": str(provider_faults.PENDING_LIMIT_MINUTES),
    "SIMULATOR_FAULTS": json.dumps(provider_faults.NONE),
}
QUIET_LIMIT_SECONDS = 180
FIRST_FAULT_SECONDS = 8
POISON_SECONDS = 0.7
MEMORY_SECONDS = 2.0
GROWTH_MAX = 1.5
"""The largest memory of the services in the last third of a run, as a multiple of that in the first third."""

Faults = Mapping[str, Callable[[faults.Target], None]]


class Soak:
    """One run on one system."""

    def __init__(self, system: System, seconds: float, rate: int, seed: int, plan: Faults) -> None:
        self._system = system
        self._seconds = seconds
        self._rate = rate
        self._seed = seed
        self._plan = plan
        urls = system.urls
        self._postgres_url = urls["POSTGRES_URL"]
        self._base = urlsplit(urls["BASE_URL"])
        self._target = faults.Target(system)
        chance = random.Random(seed)
        self._ledger = Ledger()
        self._client = Client(self._base.hostname or "", self._base.port or 80)
        self._load = Load(self._client, self._ledger, rate, chance)
        self._poisoner = Poisoner(system.settings, chance)
        # Another source of chance, because these faults run in a thread of their own.
        self._provider = provider_faults.ProviderFaults(system, seconds, random.Random(f"provider {seed}"))
        self._memory_mib: list[float] = []

    def run(self) -> tuple[dict[str, str], checks.Checks]:
        """Load and disturb the system, wait until all orders are settled, and return the figures and the checks."""
        for sku, quantity in STOCKED.items():
            self._system.command("stock", "set", sku, str(quantity))
        began = time.monotonic()
        asyncio.run(self._load_and_disturb())
        loaded = time.monotonic() - began
        self._poisoner.finish()
        with psycopg.connect(self._postgres_url, autocommit=True) as connection:
            say("waiting until every order is settled and compensated")
            quiet_seconds, left = checks.await_quiet(connection, QUIET_LIMIT_SECONDS)
            found = checks.check(connection, self._target, self._ledger, self._poisoner.put)
            statuses = connection.execute("SELECT status, count(*) FROM orders GROUP BY 1 ORDER BY 1").fetchall()
        memory_mib = self._medians()
        rounded = [f"{size:.0f}" for size in memory_mib]
        grown = memory_mib[-1] > GROWTH_MAX * memory_mib[0]
        results = {
            "every order is settled and compensated": [left] if left else [],
            "memory does not grow": [f"{memory_mib[-1]:.0f} MiB after {memory_mib[0]:.0f} MiB"] if grown else [],
            **found,
        }
        figures = {
            "seed": str(self._seed),
            "orders offered": f"{self._load.offered} in {self._seconds:.0f} s, {self._load.withheld} withheld"
            f" ({self._load.offered / self._seconds:.0f}/s of {self._rate}/s);"
            f" the last client finished after {loaded:.0f} s",
            "accepted": f"{len(self._ledger.orders)}, with {len(self._ledger.keys)} keys",
            "in Postgres": ", ".join(f"{count} {status}" for status, count in statuses),
            "quiet after": f"{quiet_seconds:.1f} s" + (f", not reached: {left}" if left else ""),
            "invalid records written": str(len(self._poisoner.put)),
            "faults of the provider": ", ".join(f"{count} {name}" for name, count in self._provider.caused.items()),
            "memory of the services (PSS) in each third of the run": f"{' / '.join(rounded)} MiB",
            "answers": ", ".join(f"{count} {what}" for what, count in sorted(self._ledger.answers.items())),
        }
        return figures, results

    def _medians(self) -> list[float]:
        """Return the median memory of the services in each third of the run, in MiB."""
        size = len(self._memory_mib) // 3
        return [median(self._memory_mib[start : start + size]) for start in (0, size, 2 * size)] if size else [0.0]

    async def _load_and_disturb(self) -> None:
        disturbing = asyncio.create_task(self._disturb())
        meanwhile = [asyncio.create_task(self._poison()), asyncio.create_task(self._measure_memory())]
        disturbing_provider = asyncio.create_task(asyncio.to_thread(self._provider.run))
        try:
            await self._load.run(self._seconds)
            await disturbing
        finally:
            self._provider.stop()
            await disturbing_provider
        for task in meanwhile:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._client.close()

    async def _measure_memory(self) -> None:
        """Record the memory of the services every MEMORY_SECONDS."""
        while True:
            memory_mib = await asyncio.to_thread(counters.services_memory_mib, self._system.pids)
            self._memory_mib += [memory_mib] if memory_mib else []
            await asyncio.sleep(MEMORY_SECONDS)

    async def _disturb(self) -> None:
        """Cause every fault, evenly over the time."""
        pause = (self._seconds - FIRST_FAULT_SECONDS) / len(self._plan)
        began = time.monotonic()
        for number, (name, cause) in enumerate(self._plan.items()):
            await asyncio.sleep(max(0.0, began + FIRST_FAULT_SECONDS + number * pause - time.monotonic()))
            say(f"{time.monotonic() - began:4.0f} s  {name}  ({len(self._ledger.orders)} orders so far)")
            await asyncio.to_thread(cause, self._target)

    async def _poison(self) -> None:
        while True:
            self._poisoner.put_one()
            await asyncio.sleep(POISON_SECONDS)


def soak(
    state_dir: Path, seconds: float, rate: int, seed: int, plan: Faults = faults.ALL
) -> tuple[dict[str, str], checks.Checks]:
    """Run a soak on its own system, whose state directory is `state_dir`. Raises AlreadyRunningError."""
    # The provider calls the webhook when a pending payment is decided.
    webhook = {"PAYMENT_WEBHOOK_PORT": str(free_port())}
    with exclusive_system(state_dir, **SETTINGS, **webhook) as system:
        say(f"{rate} orders/s for {seconds:.0f} s with {len(plan)} faults, seed {seed}")
        return Soak(system, seconds, rate, seed, plan).run()


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Read the arguments, run the soak, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rate", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    state_dir = checkout() / ".orderstream" / "soak"
    figures, results = soak(state_dir, given.minutes * 60, given.rate, given.seed)
    print(checks.table(figures, results))
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AlreadyRunningError as error:
        sys.exit(str(error))
