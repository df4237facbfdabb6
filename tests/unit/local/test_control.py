"""The commands of another terminal: logs, down and reset."""

import io
from pathlib import Path

import pytest

from orderstream.local import control
from orderstream.local.processes.progress import Terminal
from orderstream.local.processes.registry import ProcessRegistry
from orderstream.local.processes.state import BusyError, StateDir, StateRecord
from orderstream.local.servers import server_home
from orderstream.local.servers.passwords import read_or_make
from tests.unit.local.conftest import SLEEPER, MakeChild, python


class EnoughLines(Exception):  # noqa: N818 - not an error: it ends the following of the logs
    """The test has seen all lines."""


def test_the_logs_of_a_service_are_those_of_its_replicas(state: StateDir) -> None:
    for name in ("payment-worker", "payment-worker-2", "order-service"):
        state.log(name).touch()
    assert [log.stem for log in control.logs(state, "payment-worker")] == ["payment-worker", "payment-worker-2"]
    assert [log.stem for log in control.logs(state, "payment-worker-2")] == ["payment-worker-2"]
    assert len(control.logs(state, None)) == 3


def test_several_logs_are_shown_with_their_names(state: StateDir) -> None:
    for name in ("a", "b"):
        state.log(name).write_text(f"{name} one\n{name} two\n")
    shown: list[str] = []
    control.show_logs(control.logs(state, None), shown.append)
    assert shown == ["a | a one", "a | a two", "b | b one", "b | b two"]


def test_following_shows_whole_new_lines_of_old_new_and_emptied_logs(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = state.log("old"), state.log("new")
    old.write_text("before\n")
    changes = iter([(old, "a", "one\nha"), (old, "a", "lf\n"), (new, "w", "first\n"), (old, "w", "again\n")])

    def change(_seconds: float) -> None:
        try:
            path, mode, text = next(changes)
        except StopIteration:
            raise EnoughLines from None
        with path.open(mode) as file:
            file.write(text)

    monkeypatch.setattr("orderstream.local.control.time.sleep", change)
    shown: list[str] = []
    with pytest.raises(EnoughLines):
        control.follow_logs(lambda: control.logs(state, None), shown.append)
    assert shown == ["old | one", "old | half", "new | first", "old | again"]


def test_down_ends_the_leftovers_of_a_killed_run(
    state: StateDir, registry: ProcessRegistry, make_child: MakeChild
) -> None:
    child = make_child("worker")
    child.start(python(SLEEPER))
    registry.update(lambda record: setattr(record.run, "start_time", "of a killed run"))
    said = io.StringIO()
    assert control.down(state, Terminal(said)) == 0
    assert "Ended what a killed run left behind: worker" in said.getvalue()
    assert child.wait(10)
    assert state.read().run is None


def test_down_without_anything_running_says_so(state: StateDir) -> None:
    said = io.StringIO()
    assert control.down(state, Terminal(said)) == 0
    assert said.getvalue() == "Nothing is running.\n"


def test_reset_removes_data_logs_passwords_and_ports_and_keeps_other_files(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = tmp_path / "elsewhere"
    home = server_home.ServerHome(state, shared, None)
    monkeypatch.setattr(server_home, "of", lambda _: home)
    for folder in (home.postgres_data, home.folder("kafka"), state.root / "kafka", state.root / "cache"):
        folder.mkdir(parents=True)
    state.payment_ledger.parent.mkdir()
    state.payment_ledger.write_bytes(b"charges")
    state.log("kafka").write_text("old")
    state.write(StateRecord({"kafka": 20_001}))
    read_or_make(state)
    control.reset(state, Terminal(io.StringIO()))
    assert sorted(path.name for path in state.root.iterdir()) == ["cache", "lock"]
    assert not shared.exists()


def test_reset_refuses_while_it_runs(state: StateDir) -> None:
    with state.lock(), pytest.raises(BusyError):
        control.reset(state, Terminal(io.StringIO()))
