"""Audits a database: runs the statements of promises.sql, which find breaches of the promises.

Each statement has a snapshot of its own, and most statements read only a piece of the orders. A long-lived snapshot
would keep PostgreSQL from removing dead rows, which slows down all services. Each statement sees an order at one
moment. Two promises may see the order at different moments, which does not affect their results.
"""

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.sql import load

SQL = load("orderstream.audit", "promises.sql")
SHOWN_PER_PROMISE = 100
PIECE_ORDERS = 20_000
"""Orders that one statement reads."""

_PLAN = (
    "SELECT set_config(name, %s, false)"
    " FROM unnest(ARRAY['enable_seqscan', 'enable_hashjoin', 'enable_mergejoin']) AS name"
)
"""Allows or forbids plans that read whole tables. The statement for a piece must not read another whole table."""
_LAST_OF_PIECE = "SELECT max(id) FROM (SELECT id FROM orders WHERE id > %s ORDER BY id LIMIT %s) AS piece"


class Progress(Struct, frozen=True):
    """How far an audit has come. A check that reads pieces of the orders counts them. None: their number is unknown."""

    checks_done: int
    checks: int
    check: str
    pieces_done: int = 0
    pieces: int | None = None

    @property
    def text(self) -> str:
        """The progress in words, such as `3 of 11 checks, p5_settles: 4 of 12 pieces`."""
        of_all = "" if self.pieces is None else f" of {self.pieces:,}"
        pieces = f": {self.pieces_done:,}{of_all} pieces" if self.pieces_done or of_all else ""
        return f"{self.checks_done} of {self.checks} checks, {self.check}{pieces}"


Report = Callable[[Progress], None]
"""Receives the progress before each statement. It may raise StoppedError, which ends the audit."""


class StoppedError(Exception):
    """The caller has stopped the audit, which has no result."""


def no_report(_: Progress) -> None:
    """Ignore the progress."""


class Breach(Struct, frozen=True):
    """One order, SKU or key that breaks a promise."""

    promise: str
    subject: str
    detail: str


def audit(postgres_url: str, grace_seconds: float, report: Report = no_report) -> dict[str, list[Breach]]:
    """Return the breaches of each promise, at most 100 of each.

    Orders that are accepted during the audit are not checked. Orders that changed within `grace_seconds` may still be
    in progress, and are not required to be finished. Raises what `report` raises.
    """
    found = {}
    with connect(postgres_url, "audit") as connection:
        connection.execute("SET statement_timeout = '5min'")
        pieces = list(_pieces(connection))
        for number, (promise, statement) in enumerate(SQL.items()):
            is_by_piece = "%(upto)s" in statement
            connection.execute(_PLAN, ("off" if is_by_piece else "on",))
            parameters: dict[str, Any] = {"grace_seconds": grace_seconds} if "%(grace_seconds)s" in statement else {}
            breaches: list[Breach] = []
            for done, (after, upto) in enumerate(pieces if is_by_piece else [("", "")]):
                report(Progress(number, len(SQL), promise, done, len(pieces) if is_by_piece else None))
                piece = {"after": after, "upto": upto} if is_by_piece else {}
                rows = connection.execute(statement, parameters | piece or None)
                breaches += (Breach(promise, str(subject), str(detail)) for subject, detail in rows)
                if len(breaches) >= SHOWN_PER_PROMISE:
                    break
            found[promise] = breaches[:SHOWN_PER_PROMISE]
    return found


def _pieces(connection: Connection) -> Iterator[tuple[str, str]]:
    """Yield pieces of the orders that exist now: the id before the first order, and the last id."""
    after = ""
    while True:
        row = connection.execute(_LAST_OF_PIECE, (after, PIECE_ORDERS)).fetchone()
        if row is None or row[0] is None:
            return
        yield after, row[0]
        after = row[0]


def table(found: dict[str, list[Breach]]) -> str:
    """Return the result of `audit` as text: a line for each promise and a line for each breach."""
    lines = []
    for promise, breaches in found.items():
        lines.append(f"{'ok  ' if not breaches else 'FAIL'} {promise}")
        lines += [f"       {breach.subject}: {breach.detail}" for breach in breaches]
    return "\n".join(lines)
