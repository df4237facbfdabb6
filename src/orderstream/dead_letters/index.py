"""Reads the index of the dead letters: groups, lists with filters, and the history of a letter (P9).

The tailer fills the index. These functions work on any connection, so that the console, its pages and the commands
give the same answers. Each search looks at a bounded number of letters and says where it stopped.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from orderstream.dead_letters.redrive import position
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

SCAN_MAX = 250_000
"""Letters that one search looks at."""
GROUPS_MAX = 200
PAGE_MAX = 200
ORDER_LETTERS_MAX = 1_000
"""Letters of one order that a search looks at."""
CHOSEN_MAX = 1_000
"""Letters that a request may name one by one."""
HISTORY_MAX = 50
_ID_MAX = 2**63 - 1

SQL = load("orderstream.dead_letters", "index.sql")

State = Literal["open", "redriven", "discarded"]
Number = Annotated[int, Meta(ge=0, le=_ID_MAX)]


class Filter(Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Which letters a search or a job means. A part that is None matches every letter."""

    service: str | None = None
    reason: str | None = None
    topic: str | None = None
    error: str | None = None
    state: State | None = None
    order_id: str | None = None
    since: datetime | None = field(default=None, name="from")
    until: datetime | None = field(default=None, name="to")


class Place(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The position of a letter in Kafka."""

    service: str
    partition: Number
    offset: Number


class Group(Struct, frozen=True, rename="camel"):
    """Letters with the same service, reason, source topic and error. `error` has no ids and numbers."""

    service: str
    reason: str
    topic: str
    error: str
    count: int
    open: int
    redriven: int
    discarded: int
    first: datetime | None
    last: datetime | None


class Letter(Struct, frozen=True, rename="camel"):
    """A row of the index. `failed_again` is the position of the letter that its last redrive became."""

    id: int
    service: str
    partition: int
    offset: int
    at: datetime | None
    reason: str
    topic: str
    source_partition: int | None
    source_offset: int | None
    error: str
    order_id: str | None
    size: int
    cut: bool
    redriven_from: str | None
    tries: int
    state: State
    state_at: datetime | None
    job_id: int | None
    failed_again: str | None

    @property
    def place(self) -> str:
        """Return service/partition@offset."""
        return position(self.service, self.partition, self.offset)


class Groups(Struct, frozen=True, rename="camel"):
    """Groups of letters. `cut` says that there are more groups, `stopped` that older letters were not searched."""

    groups: tuple[Group, ...]
    cut: bool
    stopped: bool


class Letters(Struct, frozen=True, rename="camel"):
    """A page of letters, newest first. `next` is the id at which the next page begins, or None.

    `stopped` says that the search ended because it had looked at SCAN_MAX letters. `next` then goes on.
    """

    letters: tuple[Letter, ...]
    next: int | None
    stopped: bool


class Past(Struct, frozen=True, rename="camel"):
    """What one job did with a letter. From 2 `sends` on, the record may be twice in its source topic."""

    job_id: int
    kind: str
    actor: str
    note: str
    state: str
    sends: int
    at: datetime | None
    detail: str | None


def parameters(connection: Connection, wanted: Filter, upto: int = _ID_MAX) -> dict[str, Any]:
    """Return the parameters of a search. Letters of an order are found by their index first."""
    ids = None
    if wanted.order_id is not None:
        values = {"order_id": _storable(wanted.order_id.lower()), "limit": ORDER_LETTERS_MAX}
        ids = [row[0] for row in connection.execute(SQL["ids_of_order"], values)]
    return search_values(wanted, ids, upto)


def search_values(wanted: Filter, ids: Sequence[int] | None, upto: int = _ID_MAX) -> dict[str, Any]:
    """Return the parameters of a search for the letters `ids`, or for all letters if `ids` is None."""
    return {
        "ids": None if ids is None else list(ids),
        "floor": 0 if ids is None else min(ids, default=0),
        "upto": upto if ids is None else min(upto, max(ids, default=0)),
        "scan": SCAN_MAX,
        "service": _storable(wanted.service),
        "reason": _storable(wanted.reason),
        "topic": _storable(wanted.topic),
        "error": _storable(wanted.error),
        "state": wanted.state,
        "since": wanted.since,
        "until": wanted.until,
    }


def groups(connection: Connection, wanted: Filter) -> Groups:
    """Return the groups of the matching letters, the group with the newest letter first."""
    values = parameters(connection, wanted)
    rows = connection.execute(SQL["groups"], values | {"limit": GROUPS_MAX + 1}).fetchall()
    stopped = connection.execute(SQL["passed_scan"], values).fetchone() is not None
    return Groups(tuple(Group(*row[:10]) for row in rows[:GROUPS_MAX]), len(rows) > GROUPS_MAX, stopped)


def letters(connection: Connection, wanted: Filter, limit: int, cursor: int | None = None) -> Letters:
    """Return a page of at most `limit` matching letters, newest first. `cursor` is `next` of the page before."""
    values = parameters(connection, wanted, _ID_MAX if cursor is None else cursor)
    rows = connection.execute(SQL["letters"], values | {"limit": limit + 1}).fetchall()
    found = [Letter(*row) for row in rows]
    if len(found) > limit:
        return Letters(tuple(found[:limit]), found[limit].id, stopped=False)
    passed = connection.execute(SQL["passed_scan"], values).fetchone()
    return Letters(tuple(found), passed[0] if passed else None, stopped=passed is not None)


def letter_of(connection: Connection, place: Place) -> Letter | None:
    """Return the letter at a position; None if the index does not have it."""
    ids = ids_at(connection, [place])
    rows = connection.execute(SQL["letters"], search_values(Filter(), ids) | {"limit": 1}).fetchall() if ids else []
    return Letter(*rows[0]) if rows else None


def ids_at(connection: Connection, places: Sequence[Place]) -> list[int]:
    """Return the ids of the letters at these positions, at most CHOSEN_MAX, without those that the index lacks."""
    values = {
        "services": [_storable(place.service) for place in places],
        "partitions": [place.partition for place in places],
        "offsets": [place.offset for place in places],
    }
    return [row[0] for row in connection.execute(SQL["ids_at"], values)]


def history(connection: Connection, letter_id: int) -> tuple[Past, ...]:
    """Return what jobs did with a letter, the newest first."""
    rows = connection.execute(SQL["history"], {"letter_id": letter_id, "limit": HISTORY_MAX})
    return tuple(Past(*row) for row in rows)


def changes(connection: Connection) -> tuple[Any, ...]:
    """Return values that differ after a letter was added or removed, and after a job changed letters."""
    return tuple(connection.execute(SQL["changes"]).fetchone() or ())


def _storable(text: str | None) -> str | None:
    """Return a text that PostgreSQL can compare. It stores no NUL and no lone surrogate, so that none is lost."""
    return text and text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
