"""Child processes: started in a group of their own, written down before anything else happens, ended for certain.

Each child leads its own session, so that a terminal's Ctrl-C reaches only this process. The record (pid and start
time) lets a later run end what a killed one left behind, and no other process.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orderstream.local.processes.files import make_private, open_private
from orderstream.local.processes.state import ChildRecord, StateDir, StateRecord

LAST_LINES = 15
LOG_LIMIT_BYTES = 16 * 1024 * 1024
_TAIL_BYTES = 16 * 1024
_POLL_SECONDS = 0.02
_LEFTOVER_SECONDS = 5.0
_KILL_SECONDS = 10.0
_UMASK = 0o077


class StoppingError(Exception):
    """The stack is being stopped: nothing more is started."""


class ChildError(Exception):
    """A child ended or was not ready in time. The message says which and how; `lines` are the last of its log."""

    def __init__(self, message: str, lines: Sequence[str]) -> None:
        super().__init__(message)
        self.lines = list(lines)

    def __str__(self) -> str:
        return "\n".join([str(self.args[0]), *(f"  | {line}" for line in self.lines)])


@dataclass(frozen=True)
class Account:
    """Another user to run a child as; only root may."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Command:
    """How to start a process and how to ask it to stop. `stop_order` 0 is stopped first."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    run_as: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 10.0
    stop_order: int = 2
    niceness: int = 0
    health_url: str | None = None
    stdin: bytes = b""
    """What it reads; a few KiB at most. Passwords go here or into a file, never into `argv`."""


def start_time(pid: int) -> str | None:
    """When `pid` was born, as a word no later process of the same pid shares; None when it is gone (or a zombie)."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else f"{_boot()}/{fields[18]}"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    import psutil  # noqa: PLC0415 - only systems without /proc need it here

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except psutil.Error:
        return None


def stopped(pid: int) -> bool:
    """Tell whether a signal (SIGSTOP) has stopped `pid`: it lives, and does nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return False
    import psutil  # noqa: PLC0415 - only systems without /proc need it here

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class ProcessRegistry:
    """Every child of this process, and the only writer of the record. Safe to use from several threads."""

    def __init__(self, state: StateDir, record: StateRecord) -> None:
        self._state = state
        self._record = record
        self._lock = threading.Lock()
        self._children: dict[str, Child] = {}
        self._closed = False
        state.write(record)

    @property
    def children(self) -> list["Child"]:
        """Those that were started and not yet seen to end, in the order of their start."""
        with self._lock:
            return list(self._children.values())

    def update(self, change: Callable[[StateRecord], None]) -> None:
        """Change the record and write it, if it can be written: a full disk must not keep children from being ended."""
        with self._lock:
            change(self._record)
            self._write_if_possible()

    def close(self) -> None:
        """From now on no child starts; one that is starting has been written down when this returns."""
        with self._lock:
            self._closed = True

    def spawn(self, child: "Child", start: Callable[[], ChildRecord]) -> None:
        """Start and write down, with nothing in between. Raises StoppingError after `close`, OSError when it cannot be
        written down: it runs then, and is among `children`."""
        with self._lock:
            if self._closed:
                raise StoppingError
            record = start()
            self._children[child.name] = child
            if self._record.run is not None:
                self._record.run.children.append(record)
            self._state.write(self._record)

    def forget(self, child: "Child") -> None:
        """Strike out a child that has ended."""
        with self._lock:
            if self._children.get(child.name) is child:
                del self._children[child.name]
            if self._record.run is not None:
                self._record.run.children = [one for one in self._record.run.children if one.pid != child.pid]
            self._write_if_possible()

    def _write_if_possible(self) -> None:
        # What stands there names children that have ended at worst, and their births tell them from strangers.
        with contextlib.suppress(OSError):
            self._state.write(self._record)


class Child:
    """One named process after another: a restart is another `start` of the same child, on the same log."""

    def __init__(self, name: str, log: Path, registry: ProcessRegistry) -> None:
        self.name = name
        self.log = log
        self._registry = registry
        self._process: subprocess.Popen[bytes] | None = None
        self._command: Command | None = None
        self._log_begins = 0

    @property
    def pid(self) -> int:
        """The pid of the last start."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    @property
    def command(self) -> Command:
        """What was last started."""
        if self._command is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._command

    def start(self, command: Command) -> None:
        """Start it. Raises OSError when it cannot be run at all, StoppingError when the stack is stopping."""
        self._command = command
        self._registry.spawn(self, lambda: self._start(command))

    def _start(self, command: Command) -> ChildRecord:
        account = command.run_as
        make_private(self.log.parent)
        with open_private(self.log, "ab") as output, _readable(command.stdin) as stdin:
            self._log_begins = output.tell()
            self._process = subprocess.Popen(
                list(command.argv),
                env=dict(command.env),
                cwd=command.cwd,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=_UMASK,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        pid = self._process.pid
        if command.niceness:
            os.setpriority(os.PRIO_PROCESS, pid, command.niceness)
        stop_signal = int(command.stop_signal)
        return ChildRecord(
            self.name,
            pid,
            start_time(pid) or "ended",
            stop_signal,
            command.stop_order,
            str(self.log),
            command.health_url,
        )

    def exit_code(self) -> int | None:
        """Return None while it runs; else its exit code, negative for the signal that ended it."""
        return None if self._process is None else self._process.poll()

    def alive(self) -> bool:
        """Tell whether it runs."""
        return self._process is not None and self._process.poll() is None

    def ask_to_stop(self) -> None:
        """Send the stop signal; nothing happens when it has ended already."""
        if self._process is not None:
            self._process.send_signal(self.command.stop_signal)

    def stop(self) -> None:
        """Ask it to stop, wait for its budget, kill it when that is over. Idempotent."""
        if self.alive():
            self.ask_to_stop()
            if not self.wait(self.command.stop_seconds):
                self.kill()
        self._registry.forget(self)

    def wait(self, seconds: float) -> bool:
        """Wait for its end, `seconds` at most, and tell whether it has ended."""
        try:
            if self._process is not None:
                self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it and everything it started, now (SIGKILL), and wait until it is gone."""
        if self._process is None:
            return
        if self.alive():
            signal_family(self.pid, signal.SIGKILL)
            self.wait(_KILL_SECONDS)
        self._registry.forget(self)

    def pause(self) -> None:
        """Stop the clock of it and everything it started (SIGSTOP): alive, and silent."""
        signal_family(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        signal_family(self.pid, signal.SIGCONT)

    def last_lines(self, count: int = LAST_LINES) -> list[str]:
        """The last lines that it logged since its last start."""
        return last_lines(self.log, count, self._log_begins)

    def run(self, command: Command, seconds: float) -> None:
        """Run a short command to its end. Raises ChildError unless it exits 0 within `seconds`."""
        self.start(command)
        in_time = self.wait(seconds)
        self.kill()
        if not in_time:
            raise ChildError(f"{self.name} took longer than {seconds:.0f} s", self.last_lines())
        if code := self.exit_code():
            raise ChildError(f"{self.name} {how_it_ended(code)}", self.last_lines())
        self._registry.forget(self)


@contextlib.contextmanager
def _readable(content: bytes) -> Iterator[int]:
    """Yield a descriptor to read `content` from."""
    reader, writer = os.pipe()
    try:
        os.write(writer, content)
        os.close(writer)
        yield reader
    finally:
        os.close(reader)


def signal_family(pid: int, number: signal.Signals) -> None:
    """Signal `pid` and all its descendants; PostgreSQL's leave its process group, so a group is not enough."""
    import psutil  # noqa: PLC0415 - slow to load, and seldom needed

    with contextlib.suppress(psutil.Error):
        leader = psutil.Process(pid)
        for member in [leader, *leader.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                member.send_signal(number)


def end_leftovers(children: Sequence[ChildRecord]) -> list[str]:
    """End the processes that a killed run left behind, in the order of their waves, and return their names.

    A pid whose start_time is another one's belongs to a stranger and is left alone.
    """
    alive = _left(children)
    for stop_order in sorted({one.stop_order for one in alive}):
        _end_group([one for one in alive if one.stop_order == stop_order])
    return [one.name for one in alive]


def _end_group(members: Sequence[ChildRecord]) -> None:
    for one in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGCONT)
            os.kill(one.pid, one.stop_signal)
    if not wait_until(lambda: not _left(members), _LEFTOVER_SECONDS):
        for one in _left(members):
            signal_family(one.pid, signal.SIGKILL)
        wait_until(lambda: not _left(members), _KILL_SECONDS)


def _left(children: Sequence[ChildRecord]) -> list[ChildRecord]:
    return [one for one in children if start_time(one.pid) == one.start_time]


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll `condition` until it holds, `seconds` at most; return whether it did."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def how_it_ended(code: int) -> str:
    """Say an exit code in words: `exited with 3`, `was ended by SIGKILL`."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def last_lines(log: Path, count: int, begin: int = 0) -> list[str]:
    """The last `count` lines of a log, from its last 16 KiB and not before `begin`; nothing where there is no log."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TAIL_BYTES, begin if begin <= end else 0))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def rotate(log: Path) -> None:
    """Keep the log of the last run beside the new one, and no older."""
    if log.exists() and log.stat().st_size:
        log.replace(log.with_name(log.name + ".1"))


def bound(log: Path) -> None:
    """Copy and empty a log that has grown over the limit; its writer appends, so it goes on at the start."""
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        with open_private(log.with_name(log.name + ".1"), "wb") as earlier:
            earlier.write(log.read_bytes())
        os.truncate(log, 0)
