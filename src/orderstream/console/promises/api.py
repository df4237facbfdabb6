"""The operations below `/api/promises`."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from orderstream.audit.promises import PROMISES, UNCHECKED_HOW, sql_of
from orderstream.console.actions.log import REASON_MAX_CHARACTERS, AlreadyRunningError, cancel
from orderstream.console.actions.read import RecordedAction, actions_page
from orderstream.console.context import Console
from orderstream.console.promises.audits import GRACE_DEFAULT_SECONDS, GRACE_MAX_SECONDS, KIND, Audits
from orderstream.console.web.api import Call, Operation
from orderstream.http_server.problems import Problem

_LOOKED_AT = 50
"""Newest audits among which the last finished one is looked for."""


class CheckView(Struct, frozen=True):
    """One check of the audit. `sql` is null for the check that reads the ledger of the provider.

    `result` is that of the last finished audit: the number of breaches (100 means at least 100) and the first ones.
    """

    name: str
    sql: str | None
    result: dict[str, Any] | None


class PromiseView(Struct, frozen=True):
    """One promise. `how` says what an operator can do if no check covers it."""

    name: str
    sentence: str
    checks: list[CheckView]
    how: str | None


class PromisesView(Struct, frozen=True, rename="camel"):
    """All promises, the audit that runs, and the last finished one. Each is null if there is none."""

    promises: list[PromiseView]
    running: RecordedAction | None
    last: RecordedAction | None
    latest: RecordedAction | None
    ledger_url: str | None


class StartAudit(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Orders that changed within `graceSeconds` may still be in progress, and need not be finished."""

    grace_seconds: Annotated[float, Meta(ge=0, le=GRACE_MAX_SECONDS)] = GRACE_DEFAULT_SECONDS
    reason: Annotated[str, Meta(max_length=REASON_MAX_CHARACTERS)] = ""


class CancelAudit(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing more is needed."""


class AuditAction(Struct, frozen=True, rename="camel"):
    """The action of an audit. Its state, progress and result are in `GET /api/promises`."""

    action_id: int


def promises(console: Console) -> PromisesView:
    """Return the promises with the results of the last audit."""
    with console.stores.reading() as connection:
        audits = actions_page(connection, kind=KIND, limit=_LOOKED_AT).actions
    last = next((audit for audit in audits if audit.state == "done"), None)
    results = (last.result or {}).get("checks", {}) if last else {}
    return PromisesView(
        [
            PromiseView(
                promise.name,
                promise.sentence,
                [CheckView(check, sql_of(check), results.get(check)) for check in promise.checks],
                UNCHECKED_HOW.get(promise.name),
            )
            for promise in PROMISES
        ],
        next((audit for audit in audits if audit.state == "running"), None),
        last,
        audits[0] if audits else None,
        console.part(Audits).ledger_url,
    )


def start(console: Console, actor: str, body: StartAudit) -> AuditAction:
    """Start an audit. Raises Problem 409."""
    try:
        return AuditAction(console.part(Audits).start(actor, body.reason, body.grace_seconds))
    except AlreadyRunningError:
        detail = "An audit runs already, in this console or in another one. Wait for its end, or cancel it."
        raise Problem(409, "audit-running", "An audit runs already", detail) from None


def stop(console: Console, actor: str) -> AuditAction:
    """Ask the running audit to stop. It ends after the statement that it runs now. Raises Problem 409."""
    with console.stores.acting() as connection:
        action_id = cancel(connection, KIND, actor)
    if action_id is None:
        raise Problem(409, "no-audit", "No audit runs", "No audit runs now. There is nothing to cancel.")
    return AuditAction(action_id)


def operations(console: Console) -> list[Operation]:
    """Return the operations of this area."""

    async def listed(_: Call) -> PromisesView:
        return await console.work(promises, console)

    async def started(call: Call) -> AuditAction:
        return await console.work(start, console, call.visitor.actor, call.body)

    async def cancelled(call: Call) -> AuditAction:
        return await console.work(stop, console, call.visitor.actor)

    path = "/api/promises/audit"
    return [
        Operation("GET", "/api/promises", "List the promises with the last audit", PromisesView, listed),
        Operation(
            "POST",
            path,
            "Start an audit in the background",
            AuditAction,
            started,
            body=StartAudit,
            acts=True,
            status=202,
        ),
        Operation(
            "POST",
            f"{path}/cancel",
            "Cancel the audit",
            AuditAction,
            cancelled,
            body=CancelAudit,
            acts=True,
            status=202,
        ),
    ]
