"""The operations below `/api/processes`."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from orderstream.console.actions.log import REASON_MAX_CHARACTERS
from orderstream.console.context import Console
from orderstream.console.local_stack import LocalStack
from orderstream.console.processes.act import (
    Act,
    ProcessError,
    ProcessSignalled,
    UnknownProcessError,
    process_named,
    signal_process,
)
from orderstream.console.processes.logs import LINES_DEFAULT, LINES_MAX, Level, LogPart, log_part
from orderstream.console.processes.usage import ProcessView, Usage
from orderstream.console.web.api import Call, Operation
from orderstream.http_server.problems import Problem

NOT_LOCAL = "This console was not started by `orderstream up` on this machine, so that it sees no processes."
_ACTS: tuple[tuple[Act, str], ...] = (
    ("restart", "Ask a process to end. `up` starts it again"),
    ("kill", "Kill a process (SIGKILL). `up` starts it again"),
    ("pause", "Stop a process with SIGSTOP. It answers nothing"),
    ("resume", "Continue a paused process (SIGCONT)"),
)


class ProcessesView(Struct, frozen=True):
    """The processes of the local stack, in the order of their start."""

    processes: list[ProcessView]


class LogQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Which lines: those from `offset` on, or the last ones without it; with at least this level; with this text."""

    offset: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    limit: Annotated[int, Meta(ge=1, le=LINES_MAX)] = LINES_DEFAULT
    level: Level | None = None
    text: Annotated[str, Meta(max_length=200)] = ""


class SignalReason(Struct, frozen=True, forbid_unknown_fields=True):
    """Why the process is signalled."""

    reason: Annotated[str, Meta(min_length=1, max_length=REASON_MAX_CHARACTERS)]


def stack_of(console: Console) -> LocalStack:
    """Return the local stack of this console. Raises Problem 404."""
    if console.local is None:
        raise Problem(404, "no-local-stack", "There is no local stack", NOT_LOCAL)
    return console.local


def processes(console: Console) -> ProcessesView:
    """Return the processes of the local stack. Raises Problem 404."""
    return ProcessesView(console.part(_usage).of(stack_of(console).children()))


def _usage(_: Console) -> Usage:
    return Usage()


def log_of(console: Console, name: str, query: LogQuery) -> LogPart:
    """Return a part of the log of a process. Raises Problem 404."""
    try:
        record = process_named(stack_of(console).run(), name)
    except UnknownProcessError as error:
        raise Problem(404, "not-found", "Not found", f"{error}.") from error
    return log_part(Path(record.log), query.offset, limit=query.limit, level=query.level, text=query.text)


def signalled(console: Console, name: str, act: Act, actor: str, reason: str) -> ProcessSignalled:
    """Signal a process of the local stack. Raises Problem 404 and 409."""
    run = stack_of(console).run()
    limit = console.settings.restarts_per_minute
    try:
        with console.stores.acting() as connection:
            return signal_process(connection, run, name, act, actor=actor, reason=reason, restarts_per_minute=limit)
    except UnknownProcessError as error:
        raise Problem(404, "not-found", "Not found", f"{error}.") from error
    except ProcessError as error:
        raise Problem(409, "process-refused", "The process was not signalled", f"{error}.") from error


def operations(console: Console) -> list[Operation]:
    """Return the operations of this area."""

    async def listed(_: Call) -> ProcessesView:
        return await console.work(processes, console)

    async def log(call: Call) -> LogPart:
        return await console.work(log_of, console, call.path["name"], call.query)

    def acting(act: Act, summary: str) -> Operation:
        async def signal(call: Call) -> ProcessSignalled:
            actor = call.visitor.actor
            return await console.work(signalled, console, call.path["name"], act, actor, call.body.reason)

        path = f"/api/processes/{{name}}/{act}"
        return Operation("POST", path, summary, ProcessSignalled, signal, body=SignalReason, acts=True)

    return [
        Operation("GET", "/api/processes", "List the processes of the local stack", ProcessesView, listed),
        Operation("GET", "/api/processes/{name}/log", "Read the log of a process", LogPart, log, query=LogQuery),
        *(acting(act, summary) for act, summary in _ACTS),
    ]
