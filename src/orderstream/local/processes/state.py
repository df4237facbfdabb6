"""The state directory of a local stack: its lock, the ports it picked, and the processes it started.

Only the owner can read the directory (0700, files 0600), because it holds logs and addresses with passwords. Only the
process that holds the lock writes. Readers (`status`, `env`, a second `up`) always see a whole file, because each write
replaces the file in one move.
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

_OURS = {
    "stack.json", "stack.json.new", "secrets.json", "secrets.json.new", "stores", "stores.new", "lock", "logs", "cache",
    "postgres", "postgres.new", "postgres-settings", "kafka", "kafka-aot-cache", "kafka-learning", "valkey",
    "valkey-settings", "payment-simulator", "operator-token", "bench", "soak", "benchmark.lock", "demo",
}  # fmt: skip
"""The names that `up`, the tests and the benchmarks create in a state directory, beside `test-<n>`."""
_LOCK_ATTEMPTS = 50
_LOCK_RETRY_SECONDS = 0.01


RESTARTS_KEPT = 20
"""Restarts of one process whose times are kept."""


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
    restarts: int = 0
    restarted_at: tuple[float, ...] = ()
    """Unix times of the last RESTARTS_KEPT restarts, oldest first."""


class Run(msgspec.Struct):
    """The running `up`: its process, its phase, the addresses of the servers, and the processes it started."""

    pid: int
    start_time: str = msgspec.field(name="birth")
    phase: Phase = "starting"
    urls: dict[str, str] = {}
    children: list[ChildRecord] = []


class StateRecord(msgspec.Struct):
    """The content of `stack.json`. The ports outlive a run, so that the next run has the same addresses."""

    ports: dict[str, int] = {}
    run: Run | None = None


class BusyError(Exception):
    """Another process holds the lock of this state directory."""


class StateDir:
    """The state directory of one local stack. The constructor touches no file; `open` creates the directories."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.logs = self.root / "logs"
        self._file = self.root / "stack.json"
        self._lock = self.root / "lock"

    @property
    def key(self) -> str:
        """A short name for this directory. It is the same in every run and safe in a file name."""
        return fingerprint(self.root)

    def log(self, name: str) -> Path:
        """The file that receives the output of the child `name`."""
        return self.logs / f"{name}.log"

    @property
    def payment_ledger(self) -> Path:
        """The file of the payment simulator's ledger, in a folder of its own. SQLite keeps a second file beside it."""
        return self.root / "payment-simulator" / "ledger.db"

    def open(self) -> None:
        """Create the directories. Raises OSError, for instance if they belong to another user."""
        make_private(self.root)
        make_private(self.logs)

    def close_to_others(self) -> None:
        """Remove the rights of other users from files that earlier versions left readable.

        A directory that holds other files too, such as a home directory, keeps its own mode.
        """
        found = list(self.root.iterdir())
        ours = [path for path in found if path.name in _OURS or path.name.startswith("test-")]
        if ours == found and self.root.stat().st_uid == os.geteuid():
            self.root.chmod(PRIVATE_FOLDER)
        # A token that others could read is refused, not closed: they may know it already.
        left = {"bench", "soak", "demo", "postgres", "postgres.new", "operator-token"}
        close_to_others(path for path in ours if path.name not in left and not path.name.startswith("test-"))

    def read(self) -> StateRecord:
        """Return the record that was written last, or an empty one if there is none or it cannot be read."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=StateRecord)
        except (OSError, msgspec.DecodeError):
            return StateRecord()

    def write(self, record: StateRecord) -> None:
        """Replace the record in one move, so that a reader never sees half of it."""
        write_private(self._file, msgspec.json.format(msgspec.json.encode(record), indent=1))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock this directory for one process. The kernel releases the lock when the process dies. Raises BusyError."""
        self.open()
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        try:
            # `locked` takes a shared lock for an instant. Such a reader does not hold the directory.
            for _ in range(_LOCK_ATTEMPTS):
                if _flock(descriptor, fcntl.LOCK_EX):
                    break
                if self.locked():
                    raise BusyError
                time.sleep(_LOCK_RETRY_SECONDS)
            else:
                raise BusyError
            self.close_to_others()
            yield
        finally:
            os.close(descriptor)

    def locked(self) -> bool:
        """Tell whether a process holds the lock now. Several processes may call this at the same time."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not _flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def running(self) -> Run | None:
        """Return the record of the `up` that holds the lock, or None."""
        return self.read().run if self.locked() else None


def _flock(descriptor: int, kind: int) -> bool:
    """Take a lock if it is free. Return whether it was free."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def checkout() -> Path:
    """Return the directory of the git checkout, or the current directory if the package was installed otherwise."""
    root = Path(__file__).resolve().parents[4]
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def default_state_dir(given: str | None) -> StateDir:
    """Return the state directory of `up`: `given` (ORDERSTREAM_STATE), otherwise .orderstream in the checkout."""
    return StateDir(Path(given) if given else checkout() / ".orderstream")


def shared_cache() -> Path:
    """Return the directory for fetched files, which every local stack and every test of this checkout shares."""
    return checkout() / ".orderstream" / "cache"


def fingerprint(path: Path) -> str:
    """Return ten hexadecimal digits that identify the resolved `path`."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:10]
