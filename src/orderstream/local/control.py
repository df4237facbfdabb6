"""The commands that inspect or stop a running stack from another terminal: down, status, logs, reset."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orderstream.local import operator_token
from orderstream.local.processes.files import open_private
from orderstream.local.processes.logs import last_lines, rotate
from orderstream.local.processes.masking import without_token
from orderstream.local.processes.pids import is_stopped, start_time, wait_until
from orderstream.local.processes.progress import Terminal
from orderstream.local.processes.registry import end_leftovers
from orderstream.local.processes.service import problem_at
from orderstream.local.processes.signals import Stop
from orderstream.local.processes.state import ChildRecord, Run, StateDir, StateRecord
from orderstream.local.servers import server_home
from orderstream.local.up import STARTED_SECONDS

_DOWN_SECONDS = 120.0
_FOLLOW_SECONDS = 0.1
_SHOWN_LINES = 100


def start_detached(state: StateDir, stop: Stop) -> int:
    """Run `up` in its own session and show its output until it serves. Return 0, or 1 if it does not serve in time."""
    state.open()
    log = state.log("up")
    rotate(log)
    with open_private(log, "ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "orderstream.cli", "up"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + STARTED_SECONDS
    shown = 0
    while True:
        ended = child.poll()
        run = state.read().run
        serves = run is not None and run.phase == "up" and run.pid == child.pid
        text = log.read_text(errors="replace")
        sys.stdout.write(text[shown:])
        sys.stdout.flush()
        shown = len(text)
        if ended is not None:
            return ended
        if serves:
            return 0
        if stop.requested.wait(_FOLLOW_SECONDS) or time.monotonic() > deadline:
            child.send_signal(signal.SIGTERM)
            child.wait(_DOWN_SECONDS)
            return 1


def down(state: StateDir, terminal: Terminal) -> int:
    """Stop the running `up`, wait for its end, and end what a killed `up` left behind. Return the exit code."""
    run = state.read().run
    if run is None:
        terminal.say("Nothing is running.")
        return 0
    if start_time(run.pid) == run.start_time:
        terminal.say(f"Stopping `orderstream up` (pid {run.pid})")
        os.kill(run.pid, signal.SIGTERM)
        if not wait_until(lambda: start_time(run.pid) != run.start_time, _DOWN_SECONDS):
            terminal.say(f"It has not ended after {_DOWN_SECONDS:.0f} s; see {state.logs}")
            return 1
    _end_leftovers(state, terminal)
    terminal.say("Stopped. The state is kept for the next start.")
    return 0


def _end_leftovers(state: StateDir, terminal: Terminal) -> None:
    with state.lock():
        record = state.read()
        if record.run is not None:
            if ended := end_leftovers(record.run.children):
                terminal.say(f"Ended what a killed run left behind: {', '.join(ended)}")
            state.write(StateRecord(record.ports))


def status(run: Run) -> list[str]:
    """Return a line for each process: name, state, pid, health page. A second line describes its problem, if any."""
    lines = [f"{'up':<20} {run.phase:<12} pid {run.pid}"]
    with ThreadPoolExecutor(len(run.children) or 1) as pool:
        for child, (condition, problem) in zip(run.children, pool.map(_condition, run.children), strict=True):
            lines.append(f"{child.name:<20} {condition:<12} pid {child.pid:<8} {child.health_url or ''}".rstrip())
            if problem:
                lines.append(f"  {child.name} {problem}")
    return lines


def _condition(child: ChildRecord) -> tuple[str, str | None]:
    """Return the state of a process in one word, and a text that describes its problem, if any."""
    if start_time(child.pid) != child.start_time:
        return "ended", None
    if is_stopped(child.pid):
        return "stopped", "is stopped by a signal; `up` restarts it"
    if child.health_url is None:
        return "running", None
    problem = problem_at(child.health_url)
    if problem is None:
        return "healthy", None
    return "not ready", None if problem == "starting" else problem if problem.startswith("has ") else f"says: {problem}"


def logs(state: StateDir, service: str | None) -> list[Path]:
    """Return the log files of the stack, or those of one process or of all replicas of one service."""
    found = sorted(state.logs.glob("*.log"), key=lambda log: log.stem)
    if service is None:
        return found
    return [log for log in found if service in {log.stem, log.stem.removesuffix(_replica_suffix(log))}]


def _replica_suffix(log: Path) -> str:
    """Return for example `-2` for `payment-worker-2.log`, and an empty text for the first replica."""
    tail = log.stem.rpartition("-")[2]
    return f"-{tail}" if tail.isdigit() else ""


def show_logs(files: Sequence[Path], write: Callable[[str], None]) -> None:
    """Write the last lines of each file. If there are several files, each line begins with the name of its file."""
    for file in files:
        prefix = f"{file.stem} | " if len(files) > 1 else ""
        for line in last_lines(file, _SHOWN_LINES):
            write(prefix + without_token(line))


def follow_logs(files: Callable[[], Sequence[Path]], write: Callable[[str], None]) -> None:
    """Write the lines that are added to the files, and to files that appear later, until interrupted."""
    at = {file: file.stat().st_size for file in files()}
    while True:
        for file in files():
            for line in _added(file, at):
                write(f"{file.stem} | {without_token(line)}")
        time.sleep(_FOLLOW_SECONDS)


def _added(file: Path, at: dict[Path, int]) -> Iterator[str]:
    """Yield the complete lines after offset `at[file]`, and move it. A file that shrank is read from its start."""
    try:
        size = file.stat().st_size
        begin = min(at.get(file, 0), size) if size >= at.get(file, 0) else 0
        with file.open("rb") as stream:
            stream.seek(begin)
            whole = stream.read(size - begin).rpartition(b"\n")[0]
    except FileNotFoundError:
        return
    at[file] = begin + len(whole) + 1 if whole else begin
    if whole:
        yield from whole.decode(errors="replace").split("\n")


def reset(state: StateDir, terminal: Terminal) -> None:
    """Remove the data, the logs and the ports of a stack that is not running. The fetched files stay.

    Raises BusyError if it runs.
    """
    _end_leftovers(state, terminal)
    with state.lock():
        for path in server_home.remove(state):
            terminal.say(f"Removed {path}")
        for name in ("logs", "payment-simulator", "stack.json", "secrets.json", operator_token.FILE):
            path = state.root / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        terminal.say(f"Removed the data and the logs in {state.root}")
