"""The state directory: records are read completely, and one process holds the lock."""

import fcntl
from pathlib import Path

import pytest

from orderstream.local.processes.state import (
    BusyError,
    ChildRecord,
    Run,
    StateDir,
    StateRecord,
    default_state_dir,
    fingerprint,
)


def test_a_written_record_is_read_back(state: StateDir) -> None:
    child = ChildRecord("postgres", 12, "boot/34", 2, 2, "postgres.log")
    record = StateRecord({"postgres": 20_001}, Run(1, "boot/2", "up", {"BASE_URL": "http://127.0.0.1:3000"}, [child]))
    state.write(record)
    assert state.read() == record


@pytest.mark.parametrize("content", [b"", b"{", b'{"ports": {"postgres": "x"}}'])
def test_an_unreadable_record_is_an_empty_one(state: StateDir, content: bytes) -> None:
    (state.root / "stack.json").write_bytes(content)
    assert state.read() == StateRecord()


def test_only_one_process_holds_the_lock_of_a_state_directory(state: StateDir) -> None:
    assert not state.locked()
    with state.lock():
        assert state.locked()
        with pytest.raises(BusyError), state.lock():
            pass
    assert not state.locked()


def test_a_reader_of_the_lock_is_not_a_holder(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    (state.root / "lock").touch()
    with (state.root / "lock").open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert not state.locked()
        pauses: list[float] = []

        def release(seconds: float) -> None:
            pauses.append(seconds)
            fcntl.flock(reader, fcntl.LOCK_UN)

        monkeypatch.setattr("orderstream.local.processes.state.time.sleep", release)
        with state.lock():
            assert state.locked()
        assert len(pauses) == 1


def test_the_wait_for_a_reader_of_the_lock_is_limited(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orderstream.local.processes.state.time.sleep", lambda _: None)
    (state.root / "lock").touch()
    with (state.root / "lock").open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        with pytest.raises(BusyError), state.lock():
            pass


def test_a_run_without_a_holder_is_not_running(state: StateDir) -> None:
    state.write(StateRecord(run=Run(1, "boot/2", "up")))
    assert state.running() is None
    with state.lock():
        assert state.running() is not None


def test_reading_the_state_creates_no_directory(tmp_path: Path) -> None:
    assert StateDir(tmp_path / "none").running() is None
    assert not (tmp_path / "none").exists()


def test_a_given_directory_is_used(tmp_path: Path) -> None:
    assert default_state_dir(str(tmp_path)).root == tmp_path
    assert default_state_dir(None).root.name == ".orderstream"


def test_two_paths_of_one_directory_have_one_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert fingerprint(tmp_path / "link") == fingerprint(tmp_path)
    assert fingerprint(tmp_path) != fingerprint(tmp_path.parent)
