"""Holds a database against the promises: the SQL of promises.sql, run in one snapshot, and what it finds."""

from typing import Any

from msgspec import Struct

from orderstream.postgres.connect import connect
from orderstream.postgres.sql import load

SQL = load("orderstream.audit", "promises.sql")
SHOWN_PER_PROMISE = 100


class Violation(Struct, frozen=True):
    """One order, SKU or key that breaks a promise."""

    promise: str
    subject: str
    detail: str


def audit(postgres_url: str, grace_seconds: float) -> dict[str, list[Violation]]:
    """Return the violations of each promise, at most 100 of each.

    Orders that changed within `grace_seconds` may still be on their way, and are not held to where they should end.
    """
    found = {}
    with connect(postgres_url, "audit") as connection:
        connection.execute("SET statement_timeout = '5min'")
        connection.execute("SET enable_seqscan = on")
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for promise, statement in SQL.items():
            parameters: dict[str, Any] = {"grace_seconds": grace_seconds} if "%(grace_seconds)s" in statement else {}
            rows = connection.execute(statement, parameters or None).fetchmany(SHOWN_PER_PROMISE)
            found[promise] = [Violation(promise, str(subject), str(detail)) for subject, detail in rows]
        connection.execute("COMMIT")
    return found


def table(found: dict[str, list[Violation]]) -> str:
    """Return what `audit` found for a person to read: a line a promise, and one a violation."""
    lines = []
    for promise, violations in found.items():
        lines.append(f"{'ok  ' if not violations else 'FAIL'} {promise}")
        lines += [f"       {one.subject}: {one.detail}" for one in violations]
    return "\n".join(lines)
