"""The system of a benchmark or a soak. Only one of them may run on a state directory at a time."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orderstream.local.processes.state import checkout
from tests.support.system import System

BENCH_DIR = checkout() / ".orderstream" / "bench"
"""The state directory of the benchmarks."""


def say(text: str) -> None:
    """Print what a benchmark does now, beside its result."""
    print(text, file=sys.stderr, flush=True)


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
            yield system
        except BaseException:
            system.stop()
            print(f"The logs are kept in {system.state.logs}", file=sys.stderr)
            raise
        system.end()
        system.command("reset")
