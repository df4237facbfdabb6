"""A state directory, a registry and small children for the tests of the stack."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orderstream.local.processes.child import Child, Command, ProcessRegistry, start_time
from orderstream.local.processes.state import Run, StateDir, StateRecord

MakeChild = Callable[[str], Child]


def python(script: str, stop_seconds: float = 10.0, stop_order: int = 1) -> Command:
    """A child that runs `script`; it says `ready` on its log when it has come so far."""
    argv = [sys.executable, "-c", script]
    return Command(argv, {"PATH": os.environ["PATH"]}, Path("/"), stop_seconds=stop_seconds, stop_order=stop_order)


SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal({int(signal.SIGTERM)}, signal.SIG_IGN); {SLEEPER}"


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A state directory that exists."""
    made = StateDir(tmp_path / "state")
    made.open()
    return made


@pytest.fixture
def registry(state: StateDir) -> Iterator[ProcessRegistry]:
    """A registry whose children are killed after the test."""
    made = ProcessRegistry(state, StateRecord(run=Run(os.getpid(), start_time(os.getpid()) or "")))
    yield made
    for child in made.children:
        child.kill()


@pytest.fixture
def child(state: StateDir, registry: ProcessRegistry) -> MakeChild:
    """Makes a child by its name, with its log in the state directory."""
    return lambda name: Child(name, state.log(name), registry)
