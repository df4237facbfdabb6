"""Reads the record of what operators did."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct

from orderstream.console.actions.log import SQL
from orderstream.postgres.connect import Connection

LIMIT_DEFAULT = 50
LIMIT_MAX = 500
_ID_MAX = 2**63 - 1

State = Literal["running", "done", "failed", "cancelled", "interrupted"]


class RecordedAction(Struct, frozen=True, rename="camel"):
    """An action of an operator. It is interrupted if its console ended before it: it may have had an effect or not."""

    id: int
    at: datetime
    actor: str
    kind: str
    subject: str
    reason: str
    parameters: dict[str, Any]
    state: State
    result: dict[str, Any] | None
    progress: dict[str, Any] | None
    finished_at: datetime | None
    cancelled_by: str | None


class ActionsPage(Struct, frozen=True):
    """Some actions, newest first. `next` is the cursor of the next page, None at the end."""

    actions: list[RecordedAction]
    next: int | None


def actions_page(
    connection: Connection,
    *,
    kind: str | None = None,
    subject: str | None = None,
    actor: str | None = None,
    before: int | None = None,
    limit: int = LIMIT_DEFAULT,
) -> ActionsPage:
    """Return the newest actions that match. `kind` is a whole kind, or its part before the dot."""
    filters: Mapping[str, Any] = {"kind": kind, "subject": subject, "actor": actor}
    parameters = {**filters, "before": _ID_MAX if before is None else before, "limit": limit + 1}
    found = [RecordedAction(*row) for row in connection.execute(SQL["actions_page"], parameters)]
    return ActionsPage(found[:limit], found[limit - 1].id if len(found) > limit else None)


def action_with_id(connection: Connection, action_id: int) -> RecordedAction | None:
    """Return one action, or None if there is none."""
    row = connection.execute(SQL["action_with_id"], {"id": action_id}).fetchone()
    return None if row is None else RecordedAction(*row)


def latest(connection: Connection, kind: str) -> RecordedAction | None:
    """Return the newest action of a kind, or None."""
    found = actions_page(connection, kind=kind, limit=1).actions
    return found[0] if found else None
