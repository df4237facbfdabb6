"""Signals reach only recorded processes with their start time, never a console, and never more than `up` accepts."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from orderstream.console.processes.act import Act, RefusedError, UnknownProcessError, check, process_named, send
from orderstream.console.processes.usage import Usage
from orderstream.local.processes.child import Child
from orderstream.local.processes.pids import is_stopped, start_time
from orderstream.local.processes.registry import ProcessRegistry
from orderstream.local.processes.state import ChildRecord, Run, StateDir, StateRecord
from tests.support.waiting import wait_until
from tests.unit.local.conftest import STUBBORN, started


@pytest.fixture
def state(tmp_path: Any) -> StateDir:
    """A state directory."""
    directory = StateDir(tmp_path / "state")
    directory.open()
    return directory


@pytest.fixture
def registry(state: StateDir) -> Iterator[ProcessRegistry]:
    """The registry of an `up` that is up. Its children are killed after the test."""
    run = Run(os.getpid(), start_time(os.getpid()) or "", "up")
    registry = ProcessRegistry(state, StateRecord(run=run))
    yield registry
    for child in registry.children:
        child.kill()


def _run(state: StateDir) -> Run:
    run = state.read().run
    assert run is not None
    return run


def _child(state: StateDir, registry: ProcessRegistry, name: str = "payment-worker-2") -> Child:
    return Child(name, state.log(name), registry)


def test_a_process_is_paused_resumed_restarted_and_killed(state: StateDir, registry: ProcessRegistry) -> None:
    child = started(_child(state, registry))
    record = process_named(_run(state), "payment-worker-2")
    usage = Usage()
    (view,) = usage.of([record])
    assert (view.state, view.cpu) == ("running", None)
    assert view.memory_bytes is not None
    assert view.memory_bytes > 2**20

    check(_run(state), record, "pause", 5)
    send(record, "pause")
    wait_until(lambda: is_stopped(record.pid), 10, "it is paused")
    (view,) = usage.of([record])
    assert view.state == "paused"
    assert view.cpu is not None
    with pytest.raises(RefusedError, match="is paused already"):
        check(_run(state), record, "pause", 5)
    send(record, "resume")
    wait_until(lambda: not is_stopped(record.pid), 10, "it goes on")
    with pytest.raises(RefusedError, match="is not paused"):
        check(_run(state), record, "resume", 5)

    send(record, "pause")
    send(record, "restart")
    assert child.wait(10), "a paused process gets its stop signal too"
    assert child.exit_code() == -signal.SIGTERM
    assert usage.of([record])[0].state == "ended"

    stubborn = started(_child(state, registry, "kafka"), STUBBORN)
    send(process_named(_run(state), "kafka"), "kill")
    assert stubborn.wait(10)


def test_a_process_that_is_not_ours_is_never_signalled(state: StateDir, registry: ProcessRegistry) -> None:
    started(_child(state, registry))
    run = _run(state)
    record = process_named(run, "payment-worker-2")
    for name in ("up", "", "../payment-worker-2", str(os.getpid())):
        with pytest.raises(UnknownProcessError):
            process_named(run, name)
    with pytest.raises(UnknownProcessError):
        process_named(None, "payment-worker-2")
    earlier = msgspec.structs.replace(record, start_time="earlier")
    with pytest.raises(RefusedError, match="has ended"):
        check(run, earlier, "kill", 5)
    send(earlier, "restart")
    assert start_time(record.pid) == record.start_time, "the process that has the pid by now gets no signal"
    for name in ("console", "console-2", "kafka-aot-cache", "payment", "worker-2"):
        with pytest.raises(RefusedError, match=f"and not {name}"):
            check(run, msgspec.structs.replace(record, name=name), "kill", 5)
    run.phase = "stopping"
    with pytest.raises(RefusedError, match="is not up"):
        check(run, record, "kill", 5)


def test_restarts_are_counted_and_limited(state: StateDir, registry: ProcessRegistry) -> None:
    for _ in range(3):
        child = started(_child(state, registry))
        child.kill()
    started(_child(state, registry))
    run = _run(state)
    record = process_named(run, "payment-worker-2")
    assert (record.restarts, len(record.restarted_at)) == (3, 3)
    check(run, record, "kill", 5)
    with pytest.raises(RefusedError, match="was restarted 3 times within the last minute"):
        check(run, record, "restart", 4)
    check(run, record, "pause", 4)
    old = msgspec.structs.replace(record, restarted_at=tuple(time.time() - 61 for _ in range(3)))
    check(run, old, "kill", 4)
    first: ChildRecord = msgspec.structs.replace(record, restarted_at=())
    acts: tuple[Act, ...] = ("kill", "restart")
    for act in acts:
        check(run, first, act, 1)
        with pytest.raises(RefusedError):
            check(run, first, act, 0)
