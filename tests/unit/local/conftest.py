"""A state directory, a process registry and small child processes for the tests of the local stack."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orderstream.local.processes.child import Child, Command
from orderstream.local.processes.pids import start_time
from orderstream.local.processes.registry import ProcessRegistry
from orderstream.local.processes.state import ChildRecord, Run, StateDir, StateRecord
from tests.support.waiting import wait_until

MakeChild = Callable[[str], Child]


def python(script: str, stop_seconds: float = 10.0, stop_order: int = 1) -> Command:
    """Return a command that runs a Python script. The scripts below print `ready` when they run."""
    argv = [sys.executable, "-c", script]
    return Command(argv, {"PATH": os.environ["PATH"]}, Path("/"), stop_seconds=stop_seconds, stop_order=stop_order)


SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal({int(signal.SIGTERM)}, signal.SIG_IGN); {SLEEPER}"


def started(child: Child, script: str = SLEEPER, stop_seconds: float = 10.0) -> Child:
    """Start a child and wait until its script runs."""
    child.start(python(script, stop_seconds))
    wait_until(lambda: "ready" in child.last_lines(), 10, f"{child.name} starts")
    return child


def recorded(state: StateDir) -> list[ChildRecord]:
    """Return the children in the record on disk."""
    run = state.read().run
    assert run is not None
    return run.children


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A state directory that exists."""
    directory = StateDir(tmp_path / "state")
    directory.open()
    return directory


@pytest.fixture
def registry(state: StateDir) -> Iterator[ProcessRegistry]:
    """A process registry. Its children are killed after the test."""
    registry = ProcessRegistry(state, StateRecord(run=Run(os.getpid(), start_time(os.getpid()) or "")))
    yield registry
    for child in registry.children:
        child.kill()


@pytest.fixture
def make_child(state: StateDir, registry: ProcessRegistry) -> MakeChild:
    """Creates a child by its name. Its log is in the state directory."""
    return lambda name: Child(name, state.log(name), registry)
