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

SQL = load("orderstream.console.actions")
_encode = msgspec.json.Encoder(decimal_format="string").encode


class Action(Struct, frozen=True):
    """An action that begins. `kind` is a stable name such as `order.cancel`. `subject` is what it is about."""

    kind: str
    subject: str
    actor: str
    reason: str
    parameters: Mapping[str, Any] = {}


class Outcome(Struct):
    """The action's id, and its result. The caller sets the result."""

    action_id: int
    result: Mapping[str, Any] | None = None


def begin(connection: Connection, action: Action) -> int:
    """Store an action that begins now, and return its id. Raises psycopg.Error."""
    row = connection.execute(
        SQL["begin_action"],
        {
            "actor": _stored(action.actor),
            "kind": action.kind,
            "subject": _stored(action.subject)[:SUBJECT_MAX_CHARACTERS],
            "reason": _stored(action.reason)[:REASON_MAX_CHARACTERS],
            "parameters": _json(action.parameters),
        },
    ).fetchone()
    assert row is not None
    number: int = row[0]
    return number


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


def _stored(text: str) -> str:
    """Return the text without the characters that PostgreSQL cannot store: NUL and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def _json(value: Mapping[str, Any]) -> str:
    """Return JSON that PostgreSQL can store."""
    return _encode(value).decode().replace("\\u0000", "\\ufffd")
