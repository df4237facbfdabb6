"""Private files: their modes do not depend on the umask, and files that others could read are closed."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orderstream.local.processes import files
from orderstream.local.processes.state import StateDir, StateRecord
from orderstream.local.servers import passwords


@pytest.fixture(params=[0o000, 0o027, 0o077], ids=["umask-000", "umask-027", "umask-077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Several values of the umask."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    """Return the mode of `path`."""
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.usefixtures("umask")
def test_only_the_owner_can_read_the_state(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "state")
    with state.lock():
        state.write(StateRecord({"kafka": 20_001}))
        passwords.read_or_make(state)
        with files.open_private(state.log("kafka"), "ab") as log:
            log.write(b"line\n")
    assert [mode(path) for path in (state.root, state.logs)] == [0o700, 0o700]
    assert {mode(path) for path in state.root.rglob("*") if path.is_file()} == {0o600}


def test_files_that_an_earlier_version_left_readable_are_closed_at_the_next_start(state: StateDir) -> None:
    state.root.chmod(0o755)
    state.logs.chmod(0o755)
    for path in (state.root / "stack.json", state.log("up"), state.root / "cache" / "jars" / "a.jar"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        path.chmod(0o644)
    with state.lock():
        pass
    assert [path for path in (state.root, *state.root.rglob("*")) if mode(path) & 0o077] == []


def test_a_directory_with_other_files_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "of-the-user").mkdir()
    (tmp_path / "of-the-user").chmod(0o755)
    tmp_path.chmod(0o755)
    with StateDir(tmp_path).lock():
        pass
    assert mode(tmp_path) == 0o755
    assert mode(tmp_path / "of-the-user") == 0o755
    assert mode(tmp_path / "logs") == 0o700


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("")
    outside.chmod(0o644)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(outside)
    files.close_to_others([tmp_path / "in", tmp_path / "gone"])
    files.open_to_all(tmp_path / "in")
    assert mode(outside) == 0o644


@pytest.mark.usefixtures("umask")
def test_opened_files_can_be_read_and_run_by_all(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program, library = tmp_path / "bin" / "program", tmp_path / "bin" / "library"
    program.write_text("")
    program.chmod(0o700)
    library.write_text("")
    files.open_to_all(tmp_path)
    assert [mode(path) for path in (tmp_path / "bin", program, library)] == [0o755, 0o755, 0o644]


def test_passwords_are_kept_and_differ(state: StateDir) -> None:
    first = passwords.read_or_make(state)
    assert passwords.read_or_make(state) == first == passwords.read(state)
    known = [getattr(first, name) for name in first.__struct_fields__]
    assert len(set(known)) == len(known)
    assert min(map(len, known)) >= 32


def test_an_unreadable_file_of_passwords_is_replaced(state: StateDir) -> None:
    (state.root / "secrets.json").write_text("{")
    assert passwords.read(state) is None
    assert passwords.read_or_make(state) == passwords.read(state)
