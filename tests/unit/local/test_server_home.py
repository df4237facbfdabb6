"""The servers of root use the folder that has their data, otherwise the first folder that can hold and run them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orderstream.local.processes.state import StateDir
from orderstream.local.servers import server_home
from orderstream.local.servers.server_home import ServerHomeError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only the servers of root are in another folder")


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Two folders in place of /var/tmp and the others. Every account may enter them."""
    root = Path("/tmp") / f"orderstream-homes-{os.getpid()}"  # noqa: S108
    folders = [root / "first", root / "second"]
    monkeypatch.setattr(server_home, "BASES", tuple(folders))
    monkeypatch.setattr(server_home, "FREE_BYTES_MIN", 1 << 20)
    root.mkdir(exist_ok=True)
    root.chmod(0o755)
    for base in folders:
        base.mkdir(exist_ok=True)
        base.chmod(0o1777)
    yield folders
    shutil.rmtree(root)


def test_the_servers_of_an_ordinary_user_are_in_the_state_directory(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    chosen = server_home.choose(state, pytest.fail)
    assert (chosen.postgres_data, chosen.programs, chosen.account) == (state.root / "postgres", None, None)


@needs_root
def test_the_first_folder_that_works_is_used_and_recorded(state: StateDir, bases: list[Path]) -> None:
    chosen = server_home.choose(state, pytest.fail)
    assert chosen.shared is not None
    assert chosen.shared.parent == bases[0]
    assert server_home.of(state) == chosen
    assert chosen.shared.stat().st_mode & 0o777 == 0o710


@needs_root
@pytest.mark.parametrize("harm", ["missing", "a file", "closed", "open to all", "another user's", "full"])
def test_a_folder_that_cannot_be_used_is_named_and_the_next_one_is_used(
    state: StateDir, bases: list[Path], harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bases[0]
    occupied = server_home._shared(first)
    if harm in {"missing", "a file"}:
        first.rmdir()
        if harm == "a file":
            first.touch()
    elif harm == "closed":
        first.chmod(0o700)
    elif harm == "full":
        usage = shutil.disk_usage
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: usage(path)._replace(free=0) if path == first else usage(path)
        )
    else:
        occupied.mkdir()
        if harm == "open to all":
            occupied.chmod(0o777)
        else:
            os.chown(occupied, 65_534, 65_534)
    said: list[str] = []
    chosen = server_home.choose(state, said.append)
    assert chosen.shared is not None
    assert chosen.shared.parent == bases[1]
    assert len(said) == 1
    assert said[0].startswith(f"{first} cannot be used: ")
    assert str(chosen.shared) in said[0]


IN_NAMESPACE = """
import sys
from collections.abc import Iterator
from pathlib import Path
from orderstream.local.servers import server_home
from orderstream.local.processes.state import StateDir
server_home.BASES = tuple(map(Path, sys.argv[2:]))
server_home.FREE_BYTES_MIN = 1 << 20
state = StateDir(Path(sys.argv[1]))
state.open()
print(server_home.choose(state, print).shared.parent)
"""


@needs_root
@pytest.mark.parametrize(
    ("options", "why"), [("noexec", "noexec"), ("ro", "Read-only"), ("size=64k", "MiB are free there")]
)
def test_a_real_mount_that_cannot_be_used_is_named(state: StateDir, bases: list[Path], options: str, why: str) -> None:
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        pytest.skip("unshare or mount is not installed")
    script = f'mount -t tmpfs -o {options} none "{bases[0]}" && shift 0 && exec "$@"'
    arguments = [sys.executable, "-c", IN_NAMESPACE, str(state.root), *map(str, bases)]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *arguments], capture_output=True, text=True, check=False
    )
    if "unshare failed" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"this machine allows no mounts: {done.stderr}")
    assert done.returncode == 0, done.stderr
    first, _, second = done.stdout.partition("\n")
    assert first.startswith(f"{bases[0]} cannot be used: ")
    assert why in first
    assert second.strip() == str(bases[1])


@needs_root
def test_a_folder_with_data_is_never_replaced_by_an_empty_one(state: StateDir, bases: list[Path]) -> None:
    chosen = server_home.choose(state, pytest.fail)
    chosen.make_own(chosen.postgres_data)
    bases[0].chmod(0o700)
    with pytest.raises(ServerHomeError, match="the data of this stack is in"):
        server_home.choose(state, pytest.fail)
    (state.root / "stores").unlink()
    with pytest.raises(ServerHomeError, match="the data of this stack is in"):
        server_home.choose(state, pytest.fail)


@needs_root
def test_data_of_an_earlier_version_in_another_folder_is_found(state: StateDir, bases: list[Path]) -> None:
    earlier = server_home._shared(bases[1])
    (earlier / f"data-{state.key}").mkdir(parents=True)
    assert server_home.choose(state, pytest.fail).shared == earlier


@needs_root
def test_without_any_usable_folder_every_reason_is_given(state: StateDir, bases: list[Path]) -> None:
    for base in bases:
        base.chmod(0o700)
    with pytest.raises(ServerHomeError) as raised:
        server_home.choose(state, pytest.fail)
    assert all(f"{base} cannot be used: " in str(raised.value) for base in bases)


@needs_root
def test_another_process_of_the_same_account_cannot_read_the_configuration(state: StateDir, bases: list[Path]) -> None:
    chosen = server_home.choose(state, pytest.fail)
    assert chosen.account is not None
    folder = chosen.make_folder("valkey")
    chosen.write(folder / "valkey.conf", "requirepass secret")

    def reads(group: int) -> bool:
        done = subprocess.run(
            ["cat", str(folder / "valkey.conf")],
            user=65_534,
            group=group,
            extra_groups=[],
            capture_output=True,
            check=False,
        )
        return done.stdout == b"requirepass secret"

    assert reads(chosen.account.gid)
    assert not reads(65_534)


def test_programs_are_copied_completely_or_not_at_all(state: StateDir, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    chosen = server_home.ServerHome(state, shared, None)

    def fail(target: Path) -> None:
        (target / "half").touch()
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - the error of `fail`
        chosen.copy_program("java", fail)
    assert list((shared / "programs").iterdir()) == []
    copy = chosen.copy_program("java", lambda target: (target / "bin").touch())
    assert chosen.copy_program("java", fail) == copy


@needs_root
def test_a_stack_that_has_only_started_keeps_the_programs_when_another_one_is_removed(
    state: StateDir, bases: list[Path], tmp_path: Path
) -> None:
    other = StateDir(tmp_path / "other")
    other.open()
    assert server_home.choose(other, pytest.fail).shared == server_home.choose(state, pytest.fail).shared
    copy = server_home.of(state).copy_program("java", lambda target: (target / "bin").touch())
    server_home.remove(other)
    assert copy.exists()
    server_home.remove(state)
    assert list(bases[0].iterdir()) == []


@needs_root
def test_stacks_choose_and_remove_their_folders_one_after_another(
    state: StateDir, bases: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_home, "LOCK_SECONDS", 0)
    server_home.choose(state, pytest.fail)
    with server_home._alone():
        for act in (lambda: server_home.choose(state, pytest.fail), lambda: server_home.remove(state)):
            with pytest.raises(ServerHomeError, match="another stack has held"):
                act()
    server_home.remove(state)
    assert list(bases[0].iterdir()) == []
