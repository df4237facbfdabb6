"""One child process: how to start it, how to stop it, and how it ended.

Each child leads its own session, so that a terminal's Ctrl-C reaches only this process.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orderstream.local.processes.files import make_private, open_private
from orderstream.local.processes.logs import last_lines
from orderstream.local.processes.pids import signal_tree, start_time
from orderstream.local.processes.state import ChildRecord

LAST_LINES = 15
KILL_SECONDS = 10.0
_UMASK = 0o077


class StoppingError(Exception):
    """The local stack is stopping and starts nothing more."""


class ChildError(Exception):
    """A child ended, or was not ready in time. The message names it; `lines` are the last lines of its log."""

    def __init__(self, message: str, lines: Sequence[str]) -> None:
        super().__init__(message)
        self.lines = list(lines)

    def __str__(self) -> str:
        return "\n".join([str(self.args[0]), *(f"  | {line}" for line in self.lines)])


@dataclass(frozen=True)
class Account:
    """Another user to run a child as. Only root may do so."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Command:
    """How to start a process and how to stop it. Processes with the lowest `stop_order` are stopped first."""

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
    """What the process reads, a few KiB at most. Passwords go here or into a file, never into `argv`."""


class Registry(Protocol):
    """Where a child records its start and its end. See `registry.ProcessRegistry`."""

    def spawn(self, child: "Child", start: Callable[[], ChildRecord]) -> None:
        """Start a child and record it."""
        ...

    def forget(self, child: "Child") -> None:
        """Remove a child that has ended."""
        ...


class Child:
    """A named process. A restart calls `start` again on the same object, with the same log."""

    def __init__(self, name: str, log: Path, registry: Registry) -> None:
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
        """The command of the last start."""
        if self._command is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._command

    def start(self, command: Command) -> None:
        """Start the process. Raises OSError if it cannot run, StoppingError if the local stack is stopping."""
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
        return ChildRecord(
            name=self.name,
            pid=pid,
            start_time=start_time(pid) or "ended",
            stop_signal=int(command.stop_signal),
            stop_order=command.stop_order,
            log=str(self.log),
            health_url=command.health_url,
        )

    def exit_code(self) -> int | None:
        """Return its exit code, negative for the signal that ended it. None: it runs, or was never started."""
        return None if self._process is None else self._process.poll()

    def alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def ask_to_stop(self) -> None:
        """Send the stop signal. Does nothing if the process has ended."""
        if self._process is not None:
            self._process.send_signal(self.command.stop_signal)

    def stop(self) -> None:
        """Send the stop signal, wait `stop_seconds`, and kill the process if it still runs. Idempotent."""
        if self.alive():
            self.ask_to_stop()
            if not self.wait(self.command.stop_seconds):
                self.kill()
        self._registry.forget(self)

    def wait(self, seconds: float) -> bool:
        """Wait `seconds` at most for the process to end. Return whether it has ended."""
        try:
            if self._process is not None:
                self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Kill the process and all its descendants (SIGKILL), and wait until it has ended."""
        if self._process is None:
            return
        if self.alive():
            signal_tree(self.pid, signal.SIGKILL)
            self.wait(KILL_SECONDS)
        self._registry.forget(self)

    def pause(self) -> None:
        """Stop the process and all its descendants with SIGSTOP: they exist and answer nothing."""
        signal_tree(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue them after `pause`."""
        signal_tree(self.pid, signal.SIGCONT)

    def last_lines(self, count: int = LAST_LINES) -> list[str]:
        """Return the last lines that the process logged since its last start."""
        return last_lines(self.log, count, self._log_begins)

    def run(self, command: Command, seconds: float) -> None:
        """Run a short command to its end. Raises ChildError unless it exits with 0 within `seconds`."""
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
    """Yield a file descriptor from which `content` can be read."""
    reader, writer = os.pipe()
    try:
        os.write(writer, content)
        os.close(writer)
        yield reader
    finally:
        os.close(reader)


def how_it_ended(code: int) -> str:
    """Return an exit code in words: `exited with 3`, `was ended by SIGKILL`."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
