"""Children: started, written down, ended for certain; and the leftovers of a killed run, and no one else's."""

import os
import signal
from pathlib import Path

import pytest

from orderstream.local.processes import child as process
from orderstream.local.processes.child import (
    Child,
    ChildError,
    ProcessRegistry,
    StoppingError,
    end_leftovers,
    start_time,
)
from orderstream.local.processes.state import ChildRecord, StateDir
from tests.support.waiting import wait_until
from tests.unit.local.conftest import SLEEPER, STUBBORN, MakeChild, python


def started(child: Child, script: str = SLEEPER, stop_seconds: float = 10.0, stop_order: int = 1) -> Child:
    """Start and wait until the script is under way."""
    child.start(python(script, stop_seconds, stop_order))
    wait_until(lambda: "ready" in child.last_lines(), 10, f"{child.name} did not start")
    return child


def recorded(state: StateDir) -> list[ChildRecord]:
    """The children in the record on disk."""
    run = state.read().run
    assert run is not None
    return run.children


def test_a_started_child_is_in_the_record_with_its_birth(state: StateDir, child: MakeChild) -> None:
    one = started(child("one"))
    assert [(found.name, found.pid, found.start_time) for found in recorded(state)] == [
        ("one", one.pid, start_time(one.pid))
    ]


def test_a_child_leads_a_session_of_its_own(child: MakeChild) -> None:
    one = started(child("one"))
    assert os.getsid(one.pid) == one.pid != os.getsid(0)


def test_a_stopped_child_is_gone_from_the_record(state: StateDir, child: MakeChild) -> None:
    one = started(child("one"))
    one.stop()
    assert one.exit_code() == -signal.SIGTERM
    assert recorded(state) == []
    one.stop()


def test_a_child_that_ignores_the_signal_is_killed_after_its_budget(child: MakeChild) -> None:
    one = started(child("one"), STUBBORN, stop_seconds=0.1)
    one.stop()
    assert one.exit_code() == -signal.SIGKILL


def test_kill_ends_what_the_child_started_in_a_session_of_its_own(child: MakeChild, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    spawn = "import subprocess, sys; grandchild = subprocess.Popen(['sleep', '600'], start_new_session=True)"
    one = started(child("one"), f"{spawn}; open({str(told)!r}, 'w').write(str(grandchild.pid)); {SLEEPER}")
    grandchild = int(told.read_text())
    one.kill()
    wait_until(lambda: start_time(grandchild) is None, 10, "the grandchild lives on")


def test_a_paused_child_is_alive_and_can_be_killed(child: MakeChild) -> None:
    one = started(child("one"))
    one.pause()
    assert one.alive()
    one.kill()
    assert not one.alive()


def test_nothing_starts_after_close(state: StateDir, registry: ProcessRegistry, child: MakeChild) -> None:
    registry.close()
    with pytest.raises(StoppingError):
        child("one").start(python(SLEEPER))
    assert recorded(state) == []


def test_a_short_command_that_fails_says_its_last_lines(child: MakeChild) -> None:
    with pytest.raises(ChildError, match=r"(?s)short exited with 3.*went wrong"):
        child("short").run(python("print('went wrong'); raise SystemExit(3)"), 10)


def test_a_short_command_that_takes_too_long_is_ended(child: MakeChild) -> None:
    one = child("short")
    with pytest.raises(ChildError, match="took longer"):
        one.run(python(SLEEPER), 0.1)
    assert not one.alive()


def test_last_lines_are_those_since_the_last_start(child: MakeChild) -> None:
    one = child("one")
    one.run(python("print('first')"), 10)
    one.run(python("print('second')"), 10)
    assert one.last_lines() == ["second"]


def test_leftovers_are_ended_and_a_stranger_with_a_recorded_pid_is_not(state: StateDir, child: MakeChild) -> None:
    ours, stranger = started(child("ours")), started(child("stranger"))
    records = [one if one.name == "ours" else with_other_start_time(one) for one in recorded(state)]
    assert end_leftovers(records) == ["ours"]
    assert ours.wait(10)
    assert stranger.alive()


def test_a_leftover_that_ignores_the_signal_is_killed(
    state: StateDir, child: MakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_LEFTOVER_SECONDS", 0.1)
    one = started(child("one"), STUBBORN)
    assert end_leftovers(recorded(state)) == ["one"]
    assert one.exit_code() == -signal.SIGKILL


def with_other_start_time(record: ChildRecord) -> ChildRecord:
    """The record of an earlier process whose pid another one has now."""
    return ChildRecord(record.name, record.pid, "earlier", record.stop_signal, record.stop_order, record.log)


def test_birth_of_a_pid_that_is_gone_is_none(child: MakeChild) -> None:
    one = started(child("one"))
    assert start_time(one.pid)
    one.stop()
    assert start_time(one.pid) is None


def test_rotate_keeps_one_earlier_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    for text in ("first", "second"):
        log.write_text(text)
        process.rotate(log)
    assert not log.exists()
    assert (tmp_path / "a.log.1").read_text() == "second"


def test_bound_empties_a_log_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_LIMIT_BYTES", 4)
    log = tmp_path / "a.log"
    log.write_text("1234")
    process.bound(log)
    assert log.read_text() == "1234"
    log.write_text("12345")
    process.bound(log)
    assert log.read_text() == ""
    assert (tmp_path / "a.log.1").read_text() == "12345"


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exited with 0"), (3, "exited with 3"), (-9, "was ended by SIGKILL"), (-99, "signal 99")]
)
def test_an_exit_code_in_words(code: int, words: str) -> None:
    assert words in process.how_it_ended(code)
