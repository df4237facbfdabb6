"""A child process: it is recorded when it starts, and stopped or killed for certain."""

import os
import signal
from pathlib import Path

import pytest

from orderstream.local.processes.child import ChildError, how_it_ended
from orderstream.local.processes.pids import start_time
from orderstream.local.processes.state import StateDir
from tests.support.waiting import wait_until
from tests.unit.local.conftest import SLEEPER, STUBBORN, MakeChild, python, recorded, started


def test_a_started_child_is_recorded_with_its_start_time(state: StateDir, make_child: MakeChild) -> None:
    child = started(make_child("worker"))
    records = [(record.name, record.pid, record.start_time) for record in recorded(state)]
    assert records == [("worker", child.pid, start_time(child.pid))]


def test_a_child_leads_its_own_session(make_child: MakeChild) -> None:
    child = started(make_child("worker"))
    assert os.getsid(child.pid) == child.pid != os.getsid(0)


def test_a_stopped_child_is_removed_from_the_record(state: StateDir, make_child: MakeChild) -> None:
    child = started(make_child("worker"))
    child.stop()
    assert child.exit_code() == -signal.SIGTERM
    assert recorded(state) == []
    child.stop()


def test_a_child_that_ignores_the_stop_signal_is_killed_after_its_time_limit(make_child: MakeChild) -> None:
    child = started(make_child("worker"), STUBBORN, stop_seconds=0.1)
    child.stop()
    assert child.exit_code() == -signal.SIGKILL


def test_kill_ends_a_grandchild_that_leads_its_own_session(make_child: MakeChild, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    spawn = "import subprocess, sys; grandchild = subprocess.Popen(['sleep', '600'], start_new_session=True)"
    write = f"open({str(pid_file)!r}, 'w').write(str(grandchild.pid))"
    child = started(make_child("worker"), f"{spawn}; {write}; {SLEEPER}")
    grandchild = int(pid_file.read_text())
    child.kill()
    wait_until(lambda: start_time(grandchild) is None, 10, "the grandchild ends")


def test_a_paused_child_is_alive_and_can_be_killed(make_child: MakeChild) -> None:
    child = started(make_child("worker"))
    child.pause()
    assert child.alive()
    child.kill()
    assert not child.alive()


def test_a_failed_command_reports_its_last_lines(make_child: MakeChild) -> None:
    with pytest.raises(ChildError, match=r"(?s)short exited with 3.*went wrong"):
        make_child("short").run(python("print('went wrong'); raise SystemExit(3)"), 10)


def test_a_command_that_takes_too_long_is_killed(make_child: MakeChild) -> None:
    child = make_child("short")
    with pytest.raises(ChildError, match="took longer"):
        child.run(python(SLEEPER), 0.1)
    assert not child.alive()


def test_last_lines_begin_at_the_last_start(make_child: MakeChild) -> None:
    child = make_child("worker")
    child.run(python("print('first')"), 10)
    child.run(python("print('second')"), 10)
    assert child.last_lines() == ["second"]


def test_the_start_time_of_a_process_that_ended_is_none(make_child: MakeChild) -> None:
    child = started(make_child("worker"))
    assert start_time(child.pid)
    child.stop()
    assert start_time(child.pid) is None


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exited with 0"), (3, "exited with 3"), (-9, "was ended by SIGKILL"), (-99, "signal 99")]
)
def test_an_exit_code_is_described_in_words(code: int, words: str) -> None:
    assert words in how_it_ended(code)
