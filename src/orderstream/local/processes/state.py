"""What a stack keeps on disk: its directory, the ports it picked once, and which processes are its own.

The directory is for its owner alone (0700, files 0600): addresses with passwords and logs are in it. Only the holder of
the lock writes. Readers (`status`, `env`, a second `up`) see whole files: each is replaced at once.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from orderstream.local.processes.files import PRIVATE_FILE, PRIVATE_FOLDER, close_to_others, make_private, write_private

Phase = Literal["starting", "up", "stopping"]

_PROBES = 50
_OURS = {
    "stack.json", "stack.json.new", "secrets.json", "secrets.json.new", "stores", "stores.new", "lock", "logs", "cache",
    "postgres", "postgres.new", "postgres-settings", "kafka", "kafka-learning", "valkey", "valkey-settings",
    "bench", "soak", "benchmark.lock",
}  # fmt: skip
"""What the stack, its tests and its benchmarks put into a state directory; `test-<n>` beside these."""
_PROBE_SECONDS = 0.01


class ChildRecord(msgspec.Struct, frozen=True):
    """A process that `up` started.

    `start_time` distinguishes it from a later process with the same pid. `up` stops the lowest `stop_order` first.
    The file has other names for these two: the `up` of an earlier version may have written it.
    """

    name: str
    pid: int
    start_time: str = msgspec.field(name="birth")
    stop_signal: int
    stop_order: int = msgspec.field(name="wave")
    log: str
    health_url: str | None = None


class Run(msgspec.Struct):
    """The running `up`: who it is, how far it is, where its parts are, and what it started."""

    pid: int
    start_time: str = msgspec.field(name="birth")
    phase: Phase = "starting"
    urls: dict[str, str] = {}
    children: list[ChildRecord] = []


class StateRecord(msgspec.Struct):
    """`stack.json`: ports outlive a run, so that a later one has the same addresses."""

    ports: dict[str, int] = {}
    run: Run | None = None


class BusyError(Exception):
    """Another process holds the lock of this state directory."""


class StateDir:
    """One stack's directory. Making the object touches nothing; `open` makes the directories."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.logs = self.root / "logs"
        self._file = self.root / "stack.json"
        self._lock = self.root / "lock"

    @property
    def key(self) -> str:
        """A short name for this directory that is the same on every run and safe in a file name."""
        return fingerprint(self.root)

    def log(self, name: str) -> Path:
        """Where the output of the child `name` goes."""
        return self.logs / f"{name}.log"

    def open(self) -> None:
        """Make the directories. Raises OSError, for instance when they belong to another user."""
        make_private(self.root)
        make_private(self.logs)

    def close_to_others(self) -> None:
        """Take the rights of other users away from what earlier versions left readable.

        A directory that holds more than a stack's files (a home, /tmp) keeps its own mode.
        """
        found = list(self.root.iterdir())
        ours = [path for path in found if path.name in _OURS or path.name.startswith("test-")]
        if ours == found and self.root.stat().st_uid == os.geteuid():
            self.root.chmod(PRIVATE_FOLDER)
        nested = {"bench", "soak", "postgres", "postgres.new"}
        close_to_others(path for path in ours if path.name not in nested and not path.name.startswith("test-"))

    def read(self) -> StateRecord:
        """Return what was last written; an empty record where nothing (readable) is."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=StateRecord)
        except (OSError, msgspec.DecodeError):
            return StateRecord()

    def write(self, record: StateRecord) -> None:
        """Replace the record at once, so that a reader never sees half of it."""
        write_private(self._file, msgspec.json.format(msgspec.json.encode(record), indent=1))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this directory for one process; the kernel lets go when the process dies. Raises BusyError."""
        self.open()
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        try:
            # Whoever asks whether it is held is in the way for an instant, and is no holder.
            for _ in range(_PROBES):
                if _flock(descriptor, fcntl.LOCK_EX):
                    break
                if self.locked():
                    raise BusyError
                time.sleep(_PROBE_SECONDS)
            else:
                raise BusyError
            self.close_to_others()
            yield
        finally:
            os.close(descriptor)

    def locked(self) -> bool:
        """Tell whether some process holds this directory now. Any number may ask at once."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not _flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def running(self) -> Run | None:
        """Return the record of the `up` that holds this directory, or None."""
        return self.read().run if self.locked() else None


def _flock(descriptor: int, kind: int) -> bool:
    """Take a lock if it is free, and tell whether it was."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def checkout() -> Path:
    """The directory that the sources were cloned to; the current one where the package is installed otherwise."""
    root = Path(__file__).resolve().parents[4]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def default_state_dir(given: str | None) -> StateDir:
    """Where `up` keeps its state: `given` (ORDERSTREAM_STATE), else .orderstream of the checkout."""
    return StateDir(Path(given) if given else checkout() / ".orderstream")


def shared_cache() -> Path:
    """Where fetched files go that every stack of this checkout shares, a test's as well."""
    return checkout() / ".orderstream" / "cache"


def fingerprint(path: Path) -> str:
    """Ten hexadecimal digits that stand for the resolved `path`."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:10]
