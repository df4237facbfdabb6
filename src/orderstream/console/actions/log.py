"""Records each action of an operator in PostgreSQL: who did what, when, why, and with which result."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

REASON_MAX_CHARACTERS = 500
SUBJECT_MAX_CHARACTERS = 500
ERROR_MAX_CHARACTERS = 1_000
ACTIONS_KEPT = 100_000
"""Actions that are kept. The function of migration 0013 has the same number."""
LEASE_SECONDS = 30.0
"""How long an exclusive action counts as running after its console has last reported."""
_REMOVED_EVERY = 100
_INTERRUPTED = {"error": "interrupted: the console ended while this action was running"}

SQL = load("orderstream.console.actions")
_encode = msgspec.json.Encoder(decimal_format="string").encode


class Action(Struct, frozen=True):
    """An action that begins. `kind` is a stable name such as `order.cancel`. `subject` is what it is about."""

    kind: str
    subject: str
    actor: str
    reason: str
    parameters: Mapping[str, Any] = {}


class AlreadyRunningError(Exception):
    """An action of this exclusive kind runs already, in this console or in another one."""


class LeaseLostError(Exception):
    """Another console has ended this action, because this console did not report in time."""


class Outcome(Struct):
    """The action's id, and its result. The caller sets the result."""

    action_id: int
    result: Mapping[str, Any] | None = None


def begin(connection: Connection, action: Action) -> int:
    """Store an action that begins now, and return its id. Raises psycopg.Error."""
    row = connection.execute(SQL["begin_action"], _columns(action)).fetchone()
    assert row is not None
    return _begun(connection, row[0])


def begin_exclusive(connection: Connection, action: Action) -> int:
    """Store an action of which only one may run at a time in all consoles, and return its id.

    The caller must call `renew` more often than every LEASE_SECONDS. Raises AlreadyRunningError and psycopg.Error.
    """
    connection.execute(SQL["end_interrupted"], {"kind": action.kind, "result": _json(_INTERRUPTED)})
    parameters = {**_columns(action), "lease_seconds": LEASE_SECONDS}
    row = connection.execute(SQL["begin_exclusive"], parameters).fetchone()
    if row is None:
        raise AlreadyRunningError(f"{action.kind} runs already")
    return _begun(connection, row[0])


def renew(connection: Connection, action_id: int, progress: Mapping[str, Any] | None) -> str | None:
    """Report that an exclusive action still runs, and how far it is. Return who cancelled it, or None.

    Raises LeaseLostError and psycopg.Error.
    """
    parameters = {"id": action_id, "lease_seconds": LEASE_SECONDS, "progress": progress and _json(progress)}
    row = connection.execute(SQL["renew_action"], parameters).fetchone()
    if row is None:
        raise LeaseLostError(f"action {action_id} has ended")
    return None if row[0] is None else str(row[0])


def cancel(connection: Connection, kind: str, actor: str) -> int | None:
    """Ask the console that runs the exclusive action of this kind to stop it. Return its id, or None if none runs."""
    row = connection.execute(SQL["cancel_action"], {"kind": kind, "actor": _stored(actor)}).fetchone()
    return None if row is None else int(row[0])


def finish(connection: Connection, action_id: int, state: str, result: Mapping[str, Any] | None) -> None:
    """Store the result of an action: `done`, `failed` or `cancelled`. Raises psycopg.Error."""
    parameters = {"id": action_id, "state": state, "result": None if result is None else _json(result)}
    connection.execute(SQL["finish_action"], parameters)


@contextlib.contextmanager
def recorded(connection: Connection, action: Action) -> Iterator[Outcome]:
    """Record an action that runs inside the `with` block. If the block raises, the action has failed.

    The connection is in autocommit mode, so that the row is there before the action begins.
    """
    outcome = Outcome(begin(connection, action))
    try:
        yield outcome
    except Exception as error:
        with contextlib.suppress(Exception):
            finish(connection, outcome.action_id, "failed", {"error": str(error)[:ERROR_MAX_CHARACTERS]})
        raise
    finish(connection, outcome.action_id, "done", outcome.result)


def _columns(action: Action) -> dict[str, str]:
    return {
        "actor": _stored(action.actor),
        "kind": action.kind,
        "subject": _stored(action.subject)[:SUBJECT_MAX_CHARACTERS],
        "reason": _stored(action.reason)[:REASON_MAX_CHARACTERS],
        "parameters": _json(action.parameters),
    }


def _begun(connection: Connection, action_id: int) -> int:
    """Return the id of a new action. With every hundredth one, remove those that are not kept any more."""
    if action_id % _REMOVED_EVERY == 0 and action_id > ACTIONS_KEPT:
        connection.execute(SQL["remove_old_actions"])
    return action_id


def _stored(text: str) -> str:
    """Return the text without the characters that PostgreSQL cannot store: NUL and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def _json(value: Mapping[str, Any]) -> str:
    """Return JSON that PostgreSQL can store."""
    return _encode(value).decode().replace("\\u0000", "\\ufffd")
