"""Removes orders that ended longer ago than ORDER_RETENTION_DAYS, and all that hangs on them; conserves stock (P3).

Any number of relays do it at once, in small steps between two batches of events, so that no event waits for it long. A
step that fails is tried again later, and the relay goes on publishing.
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
"""Rate cap: one relay looks at 500 orders a second at most, and publishes between any two steps."""
WALK_SECONDS = 60.0
"""Time between two walks over the old orders, and after a step that failed."""
WALK_OVER_EVERY_ORDER_SECONDS = 3_600.0
"""Time between two walks over every order, which find orders whose ids have a wrong time."""
LOCK_TIMEOUT_SECONDS = 0.1
STATEMENT_TIMEOUT_SECONDS = 1

SQL = load("orderstream.outbox_relay")
_TIMEOUTS = {
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms",
    "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
}
log = logs.get()


class Step(Struct, frozen=True):
    """What one step came to: orders looked at and removed, units sold with them, and whether a walk has ended."""

    seen: int
    removed: int
    sold: int
    last: bool


class Retention:
    """Removes old orders that are over, in two walks.

    The first walk is quick: it looks only at ids that are old. An id has its time from a gateway's clock, which may be
    wrong. So the second walk slowly looks at every order. Both remove by the times that Postgres gave to the order.
    """

    def __init__(self, days: int) -> None:
        self._walks = (Walk(days), Walk(days, every_order=True)) if days else ()

    def run_if_due(self, session: Session) -> None:
        """Take one step of the first walk that is due; raises no error of Postgres."""
        for walk in self._walks:
            if walk.run_if_due(session):
                return


class Walk:
    """Walks over orders by their ids and removes those that are over: orders with old ids, or every order."""

    def __init__(self, days: int, *, every_order: bool = False) -> None:
        self._days = days
        self._every_order = every_order
        self._pause_seconds = WALK_OVER_EVERY_ORDER_SECONDS if every_order else WALK_SECONDS
        self._due = 0.0
        self._rows = ROWS_PER_STEP
        # The last id looked at, and the last one before the first order that was left in place. Only a gateway whose
        # clock is wrong inserts among old ids, so each quick walk begins at the second and steps over no index entry
        # that is long dead.
        self._after = ""
        self._gone = ""
        self._none_kept = True

    def run_if_due(self, session: Session) -> bool:
        """Take a step if it is time for one, and say so; raises no error of Postgres."""
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

    def step(self, connection: Connection) -> Step:
        """Look at the next old orders, at most `ROWS_PER_STEP`, and remove those that may go, in one transaction.

        Raises psycopg.Error; then nothing was removed. What no repetition can help is stepped over until the next walk,
        anything else tried again with half as many orders: they may have too many lines for the time that a step has.
        """
        rows = self._rows
        page: list[str] = []
        try:
            with connection.transaction():
                connection.execute(SQL["set_short_timeouts"], _TIMEOUTS)
                page, removable = self._look(connection)
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
        return Step(len(page), len(removable), sold, last)

    def _look(self, connection: Connection) -> tuple[list[str], list[str]]:
        parameters = {"after": self._after, "days": self._days, "limit": self._rows, "every_order": self._every_order}
        row = connection.execute(SQL["old_orders"], parameters).fetchone()
        assert row is not None
        return row[0], row[1]

    def _advance(self, page: list[str], removed: list[str], *, last: bool) -> None:
        """Put the next step behind this page; after the last page of a walk, begin the next one."""
        if self._none_kept:
            for order_id in takewhile(set(removed).__contains__, page):
                self._gone = order_id
            self._none_kept = len(page) == len(removed)
        if last:
            self._after, self._none_kept = "" if self._every_order else self._gone, True
        else:
            self._after = page[-1]


def _remove(tx: Connection, ids: list[str]) -> int:
    """Remove orders that are locked, and take the units that the confirmed ones hold out of the stock: they are sold.

    Returns their number. The SKUs, which every order wants, are locked last.
    """
    units: dict[str, int] = dict(tx.execute(SQL["units_of"], {"ids": ids}).fetchall())
    tx.execute(SQL["remove_orders"], {"ids": ids})
    if units:
        tx.execute(SQL["lock_skus"], {"skus": list(units)})
        tx.execute(SQL["take_sold"], {"skus": list(units), "quantities": list(units.values())})
    return sum(units.values())
