"""The system of a benchmark or a soak. Only one of them may run on a state directory at a time."""

import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orderstream.local.processes.state import StateDir, checkout, shared_cache
from orderstream.local.servers import server_home
from orderstream.local.servers.kafka_aot_cache import KafkaAotCache
from tests.support.system import System, alive

BENCH_DIR = checkout() / ".orderstream" / "bench"
"""The state directory of the benchmarks."""


def say(text: str) -> None:
    """Print what a benchmark does now, beside its result."""
    print(text, file=sys.stderr, flush=True)


CACHE_LIMIT_SECONDS = 90.0
"""Time that the first start on a machine has to record the cache of Kafka's classes."""


class AlreadyRunningError(Exception):
    """Another run uses this directory. Two runs on one machine would slow each other and give wrong results."""


@contextmanager
def exclusive_system(state_dir: Path, **settings: str) -> Iterator[System]:
    """Start a system with empty data, and remove it afterwards. After a failure, its logs are kept.

    Raises AlreadyRunningError.
    """
    system = System(state_dir)
    system.state.open()
    with (system.state.root / "benchmark.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(f"another run uses {system.state.root}") from None
        system.command("down")
        system.command("reset")
        try:
            say("Starting a system")
            system.up(**settings).serves()
            _await_kafka_cache(system)
            yield system
        except BaseException:
            system.stop()
            print(f"The logs are kept in {system.state.logs}", file=sys.stderr)
            raise
        system.end()
        system.command("reset")


@contextmanager
def kept_programs(state_dir: Path) -> Iterator[None]:
    """Keep the programs of the servers of root, with the cache of Kafka's classes, until the block ends.

    Without this, the end of each stack removes them, and the next start copies them and records the cache again.
    """
    state = StateDir(state_dir)
    with state.lock():
        server_home.choose(state, say)
        try:
            yield
        finally:
            server_home.remove(state)


def _await_kafka_cache(system: System) -> None:
    """Wait until the cache of Kafka's classes is recorded. The first start on a machine does that beside its work."""
    cache = KafkaAotCache(server_home.of(system.state), shared_cache())
    deadline = time.monotonic() + CACHE_LIMIT_SECONDS
    while not cache.exists or "kafka-aot-cache" in alive(system.children):
        if time.monotonic() > deadline:
            say(f"Kafka's cache was not recorded within {CACHE_LIMIT_SECONDS:g} s")
            return
        time.sleep(0.2)
