"""The folders in which PostgreSQL, Valkey and Kafka keep their data and programs, and the account that they run as.

For an ordinary user, the servers run as this user, in the state directory. For root, they run as `nobody`, with a group
that no account has. Their programs are then copied to a folder that only this group may enter, because the checkout may
be in a directory that only root can enter. Other processes of `nobody` do not have this group, so that they cannot read
the data, the passwords or the memory of a server.
"""

import contextlib
import fcntl
import grp
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orderstream.local.processes.child import Account
from orderstream.local.processes.files import PRIVATE_FOLDER, make_private, open_private, open_to_all, write_private
from orderstream.local.processes.state import StateDir, checkout, fingerprint, shared_cache

BASES = (Path("/var/tmp"), Path("/var/lib"), Path("/opt"), Path("/srv"), Path("/tmp"))  # noqa: S108 - refused unless ours
"""Where the servers of root may be, in order of preference."""
FREE_BYTES_MIN = 1 << 30
"""Space for the programs (200 MB) and for the first data. A folder with less free space is not used."""
PROBE_SECONDS = 10
LOCK_SECONDS = 90
"""Time that a stack waits while other stacks of this checkout choose or remove their folders."""
_LOCK_RETRY_SECONDS = 0.02
_RECORD = "stores"
_FOLDERS = ("postgres", "postgres.new", "postgres-settings", "kafka", "kafka-aot-cache", "kafka-learning", "valkey")
_KINDS = ("data", "kafka", "valkey")
_USER = "user"
"""The name of an empty folder that says that a stack uses the programs, also before it has data."""
# The range that systemd takes for users that exist only while a service runs: no package makes an account in it.
_FIRST_GROUP, _LAST_GROUP = 61_184, 65_519


class ServerHomeError(Exception):
    """The servers of root can use no folder, or cannot use the folder that has their data."""


@dataclass(frozen=True)
class ServerHome:
    """The folders and the account of the servers of one stack. `shared` and `account` are None for an ordinary user."""

    state: StateDir
    shared: Path | None = None
    account: Account | None = None

    @property
    def postgres_data(self) -> Path:
        """PostgreSQL's data directory."""
        return self.state.root / "postgres" if self.shared is None else self.shared / f"data-{self.state.key}"

    @property
    def programs(self) -> Path | None:
        """The folder with the copies of the programs. None: the programs run from the virtual environment."""
        return None if self.shared is None else self.shared / "programs"

    def folder(self, name: str) -> Path:
        """Return the folder of one server."""
        return self.state.root / name if self.shared is None else self.shared / f"{name}-{self.state.key}"

    def make_folder(self, name: str) -> Path:
        """Create the folder of one server, for its configuration. The account can read it and cannot change it."""
        folder = self.folder(name)
        make_private(folder)
        if self.account is not None:
            os.chown(folder, -1, self.account.gid)
            folder.chmod(0o750)
        return folder

    def make_own(self, folder: Path) -> Path:
        """Create a folder in which the server may write."""
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        if self.account is not None:
            os.chown(folder, self.account.uid, self.account.gid)
        return folder

    def write(self, path: Path, text: str) -> None:
        """Write a configuration file that only the account and the user of this process can read."""
        write_private(path, text.encode())
        if self.account is not None:
            os.chown(path, -1, self.account.gid)
            path.chmod(0o640)

    def hand_over(self, folder: Path) -> None:
        """Make the account of the servers the owner of `folder` and of its content."""
        if self.account is None:
            return
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)

    def copy_program(self, name: str, copy: Callable[[Path], object]) -> Path:
        """Return the copy `name`. If it is missing, `copy` creates it completely or not at all."""
        programs = self.programs
        if programs is None:
            raise RuntimeError("the servers of an ordinary user need no copies")
        target = programs / name
        if target.exists():
            return target
        programs.mkdir(exist_ok=True)
        programs.chmod(0o755)
        fresh = Path(tempfile.mkdtemp(prefix=".copy-", dir=programs))
        try:
            copy(fresh)
            open_to_all(fresh)
            # Another stack of this checkout may have made the same copy meanwhile.
            with contextlib.suppress(OSError):
                fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return target


def of(state: StateDir) -> ServerHome:
    """Return the home of the servers of `state`: that of the last start, or the first choice before a first start."""
    if os.geteuid() != 0:
        return ServerHome(state)
    with_data = (folder for folder in map(_shared, BASES) if _has_data(folder, state))
    shared = _recorded(state) or next(with_data, _shared(BASES[0]))
    return ServerHome(state, shared, _account(shared))


def choose(state: StateDir, say: Callable[[str], None]) -> ServerHome:
    """Find a folder for the servers of root and record it. If it is not the first choice, say so.

    Raises ServerHomeError if there is none, or if the folder that has the data of this stack cannot be used.
    """
    if os.geteuid() != 0:
        return ServerHome(state)
    with _alone():
        return _choose(state, say)


def _choose(state: StateDir, say: Callable[[str], None]) -> ServerHome:
    had = next((found for found in (_recorded(state), *map(_shared, BASES)) if found and _has_data(found, state)), None)
    if had is not None:
        if problem := _problem(had, FREE_BYTES_MIN if not (had / "programs").exists() else 0):
            raise ServerHomeError(
                f"the data of this stack is in {had}, which cannot be used: {problem}.\n"
                "Correct this, or delete the data with: orderstream reset"
            )
        return _remember(state, had)
    if (gone := _recorded(state)) and not gone.exists():
        say(f"The data of this stack was in {gone}, which does not exist any more: it starts empty.")
    problems: list[str] = []
    for base in BASES:
        shared = _shared(base)
        problem = _problem(shared, FREE_BYTES_MIN)
        if problem is None:
            for line in problems:
                say(f"{line}; PostgreSQL, Valkey and Kafka use {shared} instead")
            return _remember(state, shared)
        problems.append(f"{base} cannot be used: {problem}")
    raise ServerHomeError("\n".join(["there is no folder for the data of PostgreSQL, Valkey and Kafka:", *problems]))


def remove(state: StateDir) -> list[Path]:
    """Remove the data of the servers of `state`, and return the removed paths outside the state directory.

    With the last stack that uses them, the copied programs are removed too.
    """
    home = of(state)
    for name in _FOLDERS:
        shutil.rmtree(state.root / name, ignore_errors=True)
    (state.root / _RECORD).unlink(missing_ok=True)
    if home.shared is None:
        return []
    with _alone():
        return _remove_shared(home.shared, state)


def _remove_shared(shared: Path, state: StateDir) -> list[Path]:
    removed = [path for path in shared.glob(f"*-{state.key}*") if path.is_dir()]
    for path in removed:
        shutil.rmtree(path, ignore_errors=True)
    if shared.is_dir() and not any(list(shared.glob(f"{kind}-*")) for kind in (*_KINDS, _USER)):
        shutil.rmtree(shared, ignore_errors=True)
        removed = [shared]
    return removed


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other stacks of this checkout from choosing or removing their folders until the block ends.

    Raises ServerHomeError if they do so for longer than LOCK_SECONDS.
    """
    path = shared_cache() / "server-home.lock"
    make_private(path.parent)
    deadline = time.monotonic() + LOCK_SECONDS
    with open_private(path, "ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerHomeError(f"another stack has held {path} for {LOCK_SECONDS} s") from None
                time.sleep(_LOCK_RETRY_SECONDS)
        yield


def _shared(base: Path) -> Path:
    return base / f"orderstream-{fingerprint(checkout())}"


def _recorded(state: StateDir) -> Path | None:
    try:
        return Path((state.root / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _has_data(shared: Path, state: StateDir) -> bool:
    return any((shared / f"{kind}-{state.key}").exists() for kind in _KINDS)


def _remember(state: StateDir, shared: Path) -> ServerHome:
    write_private(state.root / _RECORD, str(shared).encode())
    (shared / f"{_USER}-{state.key}").mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    return ServerHome(state, shared, _account(shared))


def _account(shared: Path) -> Account:
    """Return `nobody`, with the group that the folder already has, or with one that no account has."""
    uid = pwd.getpwnam("nobody").pw_uid
    with contextlib.suppress(OSError):
        found = shared.stat()
        if found.st_uid == 0 and _FIRST_GROUP <= found.st_gid <= _LAST_GROUP:
            return Account(uid, found.st_gid)
    taken = {group.gr_gid for group in grp.getgrall()} | {user.pw_gid for user in pwd.getpwall()}
    free = [gid for gid in range(_FIRST_GROUP, _LAST_GROUP + 1) if gid not in taken]
    return Account(uid, free[int(fingerprint(checkout()), 16) % len(free)])


def _problem(shared: Path, free_bytes: int) -> str | None:
    """Return why the servers cannot use `shared`, or None. Creates the folder if it is missing."""
    fresh = not shared.exists()
    if not shared.parent.is_dir():
        return "there is no such directory"
    try:
        room = shutil.disk_usage(shared.parent).free
        if room < free_bytes:
            return f"only {room >> 20} MiB are free there, and {free_bytes >> 20} MiB are needed"
        account = make_ours(shared)
        problem = _problem_with_programs(shared, account)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem and fresh:
        with contextlib.suppress(OSError):
            shared.rmdir()
    return problem


def _problem_with_programs(shared: Path, account: Account) -> str | None:
    """Run a script from `shared` as the account. A noexec mount, or a parent folder that is closed, prevents it."""
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=shared) as folder:
        probe = Path(folder) / "probe"
        probe.write_text("#!/bin/sh\n", encoding="ascii")
        probe.chmod(0o700)
        open_to_all(Path(folder))
        try:
            subprocess.run(
                [str(probe)],
                check=True,
                cwd="/",
                stdin=subprocess.DEVNULL,
                timeout=PROBE_SECONDS,
                user=account.uid,
                group=account.gid,
                extra_groups=[],
            )
        except (OSError, subprocess.SubprocessError):
            return "the account `nobody` cannot run programs there (a noexec mount, or a folder that it cannot enter)"
    return None


def make_ours(folder: Path) -> Account:
    """Create `folder`, through which only the account of the servers may pass, and return the account.

    Raises PermissionError if another user owns the folder or may write to it.
    """
    account = _account(folder)
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to another user, or others may write to it; remove it and start again")
    os.chown(folder, -1, account.gid)
    folder.chmod(0o710)
    return account


def copy_all(sources: Sequence[Path], target: Path) -> None:
    """Copy files and folders into `target`. Links stay links."""
    for source in sources:
        if source.is_dir():
            shutil.copytree(source, target / source.name, symlinks=True)
        else:
            shutil.copy2(source, target / source.name)
