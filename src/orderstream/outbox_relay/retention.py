"""Removes orders that ended more than ORDER_RETENTION_DAYS ago, with all their rows, and conserves stock (P3).

Any number of relays remove orders at once, in small steps between two batches of events, so that no event waits long.
If a step fails, the relay goes on publishing and repeats the step later.
"""

import time
from itertools import takewhile

import psycopg
from msgspec import Struct

from orderstream.postgres.connect import Connection
from orderstream.postgres.faults import is_transient
from orderstream.postgres.session import Session
from orderstream.postgres.sql import load
from orderstream.telemetry import logs, metrics

ROWS_PER_STEP = 100
STEP_SECONDS = 0.2
"""Pause between two steps. One relay reads at most 500 orders a second, and publishes between two steps."""
WALK_SECONDS = 60.0
"""Pause between two walks over the old orders, and after a failed step."""
WALK_OVER_EVERY_ORDER_SECONDS = 3_600.0
"""Pause between two walks over every order. They find orders whose ids have a wrong time."""
LOCK_TIMEOUT_SECONDS = 0.1
STATEMENT_TIMEOUT_SECONDS = 1

SQL = load("orderstream.outbox_relay")
_TIMEOUTS = {
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms",
    "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
}
log = logs.get()


class RetentionStep(Struct, frozen=True):
    """The result of a step: orders read and removed, units sold with them, and whether the walk has ended."""

    seen: int
    removed: int
    sold: int
    last: bool


class Retention:
    """Removes old settled orders, in two walks.

    The first walk is quick, because it reads only old ids. An id has its time from a gateway's clock, which may be
    wrong. Therefore a second, slow walk reads every order. Both decide by the times that Postgres gave to the order.
    """

    def __init__(self, days: int) -> None:
        self._walks = (Walk(days), Walk(days, every_order=True)) if days else ()

    def run_if_due(self, session: Session) -> None:
        """Take one step of the first walk that is due. Raises no error of Postgres."""
        for walk in self._walks:
            if walk.run_if_due(session):
                return


class Walk:
    """Reads orders by id and removes those that may be removed. Reads only old ids, or every order."""

    def __init__(self, days: int, *, every_order: bool = False) -> None:
        self._days = days
        self._every_order = every_order
        self._pause_seconds = WALK_OVER_EVERY_ORDER_SECONDS if every_order else WALK_SECONDS
        self._due = 0.0
        self._rows = ROWS_PER_STEP
        # `_after` is the last id that was read. `_gone` is the last id before the first order that was kept. Only a
        # gateway with a wrong clock inserts among old ids. Each quick walk therefore begins at `_gone`, and does not
        # read the dead index entries below it.
        self._after = ""
        self._gone = ""
        self._none_kept = True

    def run_if_due(self, session: Session) -> bool:
        """Take a step if one is due, and return whether it was. Raises no error of Postgres."""
        if time.monotonic() < self._due:
            return False
        pause_seconds = WALK_SECONDS
        try:
            with session.use() as connection:
                pause_seconds = self._pause_seconds if self.step(connection).last else STEP_SECONDS
        except psycopg.Error as error:
            log.warning("retention_failed", error=str(error)[:500])
        self._due = time.monotonic() + pause_seconds
        return True

    def step(self, connection: Connection) -> RetentionStep:
        """Read the next orders, at most ROWS_PER_STEP, and remove those that may be removed, in one transaction.

        Raises psycopg.Error, and removes nothing then. After a transient error the next step reads half as many orders,
        because they may have too many lines for the time of a step. After any other error this walk skips the orders.
        """
        rows = self._rows
        page: list[str] = []
        try:
            with connection.transaction():
                connection.execute(SQL["set_short_timeouts"], _TIMEOUTS)
                page, removable = self._read_page(connection)
                sold = _remove(connection, removable) if removable else 0
        except psycopg.Error as error:
            if is_transient(error):
                self._rows = max(1, rows // 2)
            elif page:
                self._advance(page, [], last=len(page) < rows)
            raise
        if removable:
            metrics.ORDERS_REMOVED.inc(len(removable))
            log.info("orders_removed", orders=len(removable), units_sold=sold, first=removable[0], last=removable[-1])
        self._rows = min(ROWS_PER_STEP, 2 * rows)
        last = len(page) < rows
        self._advance(page, removable, last=last)
        return RetentionStep(len(page), len(removable), sold, last)

    def _read_page(self, connection: Connection) -> tuple[list[str], list[str]]:
        parameters = {"after": self._after, "days": self._days, "limit": self._rows, "every_order": self._every_order}
        row = connection.execute(SQL["old_orders"], parameters).fetchone()
        assert row is not None
        page, removable = row
        return page, removable

    def _advance(self, page: list[str], removed: list[str], *, last: bool) -> None:
        """Begin the next step after this page. After the last page, begin a new walk."""
        if self._none_kept:
            for order_id in takewhile(set(removed).__contains__, page):
                self._gone = order_id
            self._none_kept = len(page) == len(removed)
        if last:
            self._after, self._none_kept = "" if self._every_order else self._gone, True
        else:
            self._after = page[-1]


def _remove(tx: Connection, ids: list[str]) -> int:
    """Remove locked orders, and take the units of the CONFIRMED ones out of the stock, because they are sold.

    Return the number of these units. The SKUs are locked last, because every order needs them.
    """
    units: dict[str, int] = dict(tx.execute(SQL["units_of"], {"ids": ids}).fetchall())
    tx.execute(SQL["remove_orders"], {"ids": ids})
    if units:
        tx.execute(SQL["lock_skus"], {"skus": list(units)})
        tx.execute(SQL["take_sold"], {"skus": list(units), "quantities": list(units.values())})
    return sum(units.values())
