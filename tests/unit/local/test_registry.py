"""The registry starts nothing after it is closed, and leftovers of a killed run are ended without harm to others."""

import os
import signal

import msgspec
import pytest

from orderstream.local.processes import registry as registry_module
from orderstream.local.processes.child import StoppingError
from orderstream.local.processes.registry import ProcessRegistry, end_leftovers
from orderstream.local.processes.state import ChildRecord, Run, StateDir, StateRecord
from tests.unit.local.conftest import SLEEPER, STUBBORN, MakeChild, python, recorded, started


def test_nothing_starts_after_close(state: StateDir, registry: ProcessRegistry, make_child: MakeChild) -> None:
    registry.close()
    with pytest.raises(StoppingError):
        make_child("worker").start(python(SLEEPER))
    assert recorded(state) == []


def test_leftovers_are_ended_and_another_process_with_a_recorded_pid_is_not(
    state: StateDir, make_child: MakeChild
) -> None:
    leftover, other = started(make_child("leftover")), started(make_child("other"))
    records = [record if record.name == "leftover" else _with_earlier_start(record) for record in recorded(state)]
    assert end_leftovers(records) == ["leftover"]
    assert leftover.wait(10)
    assert other.alive()


def _with_earlier_start(record: ChildRecord) -> ChildRecord:
    """Return the record of an earlier process that had the same pid."""
    return msgspec.structs.replace(record, start_time="earlier")


def test_a_leftover_that_ignores_the_stop_signal_is_killed(
    state: StateDir, make_child: MakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "_LEFTOVER_SECONDS", 0.1)
    child = started(make_child("worker"), STUBBORN)
    assert end_leftovers(recorded(state)) == ["worker"]
    assert child.exit_code() == -signal.SIGKILL


def test_the_record_of_an_earlier_version_is_read(state: StateDir) -> None:
    """`birth` and `wave` are the names in the file. An `up` that still runs may have written it."""
    child = {"name": "kafka", "pid": 12, "birth": "boot/34", "stop_signal": 15, "wave": 2, "log": "kafka.log"}
    run = {"pid": os.getpid(), "birth": "boot/2", "phase": "up", "urls": {}, "children": [child]}
    (state.root / "stack.json").write_bytes(msgspec.json.encode({"ports": {"kafka": 20_001}, "run": run}))
    expected = ChildRecord("kafka", 12, "boot/34", signal.SIGTERM, 2, "kafka.log")
    assert state.read() == StateRecord({"kafka": 20_001}, Run(os.getpid(), "boot/2", "up", {}, [expected]))
