"""Holds a database against the promises: the SQL of promises.sql, and what it finds.

Each statement has a snapshot of its own, and most look at a piece of the orders: a snapshot that is held for long keeps
PostgreSQL from removing dead rows, which slows down everyone. All that a statement says of one order is of one moment.
Two promises may be judged by different moments, which matters to none of them.
"""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.sql import load

SQL = load("orderstream.audit", "promises.sql")
SHOWN_PER_PROMISE = 100
PIECE_ORDERS = 20_000
"""Orders that one statement looks at."""

_PLAN = (
    "SELECT set_config(name, %s, false)"
    " FROM unnest(ARRAY['enable_seqscan', 'enable_hashjoin', 'enable_mergejoin']) AS name"
)
"""Whether whole tables may be read, and joined. A piece would else read all of another table, to join it by a hash."""
_LAST_OF_PIECE = "SELECT max(id) FROM (SELECT id FROM orders WHERE id > %s ORDER BY id LIMIT %s) AS piece"


class Violation(Struct, frozen=True):
    """One order, SKU or key that breaks a promise."""

    promise: str
    subject: str
    detail: str


def audit(postgres_url: str, grace_seconds: float) -> dict[str, list[Violation]]:
    """Return the violations of each promise, at most 100 of each.

    Orders that are accepted meanwhile are not looked at. Orders that changed within `grace_seconds` may still be on
    their way, and are not held to where they should end.
    """
    found = {}
    with connect(postgres_url, "audit") as connection:
        connection.execute("SET statement_timeout = '5min'")
        pieces = list(_pieces(connection))
        for promise, statement in SQL.items():
            is_by_piece = "%(upto)s" in statement
            connection.execute(_PLAN, ("off" if is_by_piece else "on",))
            parameters: dict[str, Any] = {"grace_seconds": grace_seconds} if "%(grace_seconds)s" in statement else {}
            violations: list[Violation] = []
            for after, upto in pieces if is_by_piece else [("", "")]:
                piece = {"after": after, "upto": upto} if is_by_piece else {}
                rows = connection.execute(statement, parameters | piece or None)
                violations += (Violation(promise, str(subject), str(detail)) for subject, detail in rows)
                if len(violations) >= SHOWN_PER_PROMISE:
                    break
            found[promise] = violations[:SHOWN_PER_PROMISE]
    return found


def _pieces(connection: Connection) -> Iterator[tuple[str, str]]:
    """Yield the pieces of the orders that exist now: the id before the first, and the last id."""
    after = ""
    while True:
        row = connection.execute(_LAST_OF_PIECE, (after, PIECE_ORDERS)).fetchone()
        if row is None or row[0] is None:
            return
        yield after, row[0]
        after = row[0]


def table(found: dict[str, list[Violation]]) -> str:
    """Return what `audit` found for a person to read: a line a promise, and one a violation."""
    lines = []
    for promise, violations in found.items():
        lines.append(f"{'ok  ' if not violations else 'FAIL'} {promise}")
        lines += [f"       {one.subject}: {one.detail}" for one in violations]
    return "\n".join(lines)
