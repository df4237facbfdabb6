"""Restarts, kills, pauses and resumes a process of the local stack. `up` starts a process that ended again.

Only processes of the record of the running `up` are signalled, and only if their start time is the recorded one. The
supervisor is not in that record. The console refuses to signal itself or another console: it would answer no more.
"""

import signal
import time
from typing import Literal

import psutil
from msgspec import Struct

from orderstream.console.actions.log import Action, recorded
from orderstream.console.processes.usage import is_supervised
from orderstream.local.processes.pids import is_stopped, signal_tree, start_time, wait_until
from orderstream.local.processes.state import ChildRecord, Run
from orderstream.postgres.connect import Connection

Act = Literal["restart", "kill", "pause", "resume"]
WINDOW_SECONDS = 60.0
"""`up` gives up if a process dies more often than RESTARTS_PER_MINUTE within this time."""
EFFECT_SECONDS = 1.0
"""How long a pause and its end wait until the system shows their effect."""


class ProcessError(Exception):
    """The process was not signalled."""


class UnknownProcessError(ProcessError):
    """The local stack has no such process."""


class RefusedError(ProcessError):
    """The process must not be signalled now."""


class ProcessSignalled(Struct, frozen=True, rename="camel"):
    """A signal was sent. `note` says what happens next."""

    action_id: int
    name: str
    pid: int
    note: str


_NOTES = {
    "restart": "It ends in its own time, and `up` starts it again.",
    "kill": "It ended at once, and `up` starts it again.",
    "pause": "It exists and answers nothing. After 30 s `up` kills it and starts it again.",
    "resume": "It goes on.",
}


def process_named(run: Run | None, name: str) -> ChildRecord:
    """Return the record of a process of the running stack. Raises UnknownProcessError."""
    found = next((child for child in (run.children if run else ()) if child.name == name), None)
    if found is None:
        raise UnknownProcessError(f"the local stack runs no process {name[:100]!r} now")
    return found


def check(run: Run | None, record: ChildRecord, act: Act, restarts_per_minute: int) -> None:
    """Raise RefusedError if this process must not be signalled so."""
    if not is_supervised(record.name):
        raise RefusedError(f"the console signals the servers and the other services, and not {record.name}")
    if run is None or run.phase != "up":
        raise RefusedError("the local stack is not up: it starts or stops")
    if start_time(record.pid) != record.start_time:
        raise RefusedError(f"{record.name} has ended; `up` starts it again")
    paused = is_stopped(record.pid)
    if paused and act == "pause":
        raise RefusedError(f"{record.name} is paused already")
    if not paused and act == "resume":
        raise RefusedError(f"{record.name} is not paused")
    recent = sum(1 for at in record.restarted_at if time.time() - at < WINDOW_SECONDS)
    if act in ("restart", "kill") and recent >= _deaths_allowed(restarts_per_minute):
        raise RefusedError(
            f"{record.name} was restarted {recent} times within the last minute; with more than {restarts_per_minute}"
            " (RESTARTS_PER_MINUTE), `up` would give up and stop everything. Wait a minute"
        )


def _deaths_allowed(restarts_per_minute: int) -> int:
    """Return how often a process may be ended within a minute. One restart is left for a death of its own."""
    return restarts_per_minute - 1 if restarts_per_minute > 1 else restarts_per_minute


def signal_process(
    connection: Connection, run: Run | None, name: str, act: Act, *, actor: str, reason: str, restarts_per_minute: int
) -> ProcessSignalled:
    """Record that a process is signalled, and signal it. Raises ProcessError and psycopg.Error.

    The record is complete before the signal: it may be PostgreSQL itself that ends.
    """
    record = process_named(run, name)
    check(run, record, act, restarts_per_minute)
    with recorded(connection, Action(f"process.{act}", name, actor, reason, {"pid": record.pid})) as outcome:
        outcome.result = {"note": _NOTES[act]}
    send(record, act)
    return ProcessSignalled(outcome.action_id, name, record.pid, _NOTES[act])


def send(record: ChildRecord, act: Act) -> None:
    """Send the signals of an act. A process that has ended meanwhile gets none."""
    match act:
        case "kill":
            signal_tree(record.pid, signal.SIGKILL)
        case "pause":
            signal_tree(record.pid, signal.SIGSTOP)
            wait_until(lambda: is_stopped(record.pid), EFFECT_SECONDS)
        case "resume":
            signal_tree(record.pid, signal.SIGCONT)
            wait_until(lambda: not is_stopped(record.pid), EFFECT_SECONDS)
        case "restart":
            signal_tree(record.pid, signal.SIGCONT)
            try:
                process = psutil.Process(record.pid)
                if start_time(record.pid) == record.start_time:
                    process.send_signal(signal.Signals(record.stop_signal))
            except psutil.Error:
                return
