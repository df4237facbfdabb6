"""Lists orders, newest first, a page at a time. Each page reads a bounded number of orders and says where it stopped.

An order id begins with the time at which the gateway made it, so the primary key lists orders by time. A page begins
below the last id of the page before (keyset paging): an order that is inserted meanwhile is never shown twice, and
hides no other order. If no index serves a filter, the page is a bounded search from the newest order to older ones.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Literal

import psycopg
from msgspec import Struct
from msgspec.structs import asdict, replace
from psycopg.pq import TransactionStatus

from orderstream.console.orders.cursor import from_cursor, to_cursor
from orderstream.console.orders.filters import PAGE_DEFAULT, STUCK_SECONDS, OrderFilter
from orderstream.console.orders.waiting_kind import Kind, waiting_kind
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

SEARCHED_MAX = 100_000
"""Orders that one page reads at most."""
SEARCH_SECONDS = 0.05
"""Time after which a page reads no further part."""
DEEP_SEARCHED_MAX = 1_000_000
DEEP_SEARCH_SECONDS = 1.5
"""The same limits for a page that an operator asked to search further back."""
STATEMENT_SECONDS = 0.5
"""Limit of one statement of a page. At the limit, the page ends with the orders that it has."""
PART_FIRST = 500
PART_GROWTH = 3
PART_MAX = 4_500
"""Orders that one statement reads. The first part of a search has PART_FIRST orders, unless the page is larger. Each
further part has PART_GROWTH times the orders of the part before, up to PART_MAX."""
PENDING_MAX = 4_000
"""Up to this number, all orders with pending work are read and sorted. If there are more, the page is a search."""
CLOCK_MARGIN = timedelta(minutes=1)
"""The time in an order id comes from the clock of a gateway, which differs from that of Postgres by less than this."""
NEWER_MAX = 99
"""Newer orders that a page counts."""
FIRST = "g"
"""A text above every order id: the list begins at the newest order."""

SQL = load("orderstream.console.orders")
Source = Literal["all", "unsuccessful", "reason", "open", "uncompensated"]


class ListedOrder(Struct, frozen=True, rename="camel"):
    """An order in a list. `amount` is exact. `lines` is the number of its lines.

    `waiting_for` says in one word what an order waits for that is open or not compensated. The order's own page says
    more. `compensating` means: aborted and not compensated yet.
    """

    order_id: str
    user_id: str
    amount: str
    currency: str
    status: str
    failure_reason: str | None
    payment: str
    stock: str
    created_at: datetime
    updated_at: datetime
    lines: int
    nudges: int
    compensating: bool
    waiting_for: Kind | None = None


class Searched(Struct, frozen=True):
    """What a page has read: the number of orders, and the time of the oldest of them.

    `complete` is false if the page stopped at its limit before it was full. `next` then goes on from there.
    """

    orders: int
    until: datetime | None
    complete: bool


class OrderPage(Struct, frozen=True, rename="camel"):
    """A page of the list. `next` is the cursor of the next page, or None after the last. `as_of` is Postgres's time."""

    orders: tuple[ListedOrder, ...]
    next: str | None
    searched: Searched
    as_of: datetime


class _Part(Struct, frozen=True):
    """What one statement has read: the row of `search`."""

    read: int
    last_id: str | None
    oldest: datetime | None
    ids: Sequence[str]


class _Found(Struct):
    """The ids that match so far, newest first, and where the next page begins. None: no older order can match."""

    ids: list[str]
    go_on: str | None
    read: int = 0
    until: datetime | None = None


class _Effort(Struct, frozen=True):
    """How far a search goes: the number of orders that it reads, and the time after which it reads no further part."""

    orders: int
    seconds: float


def list_orders(
    connection: Connection,
    wanted: OrderFilter,
    *,
    limit: int = PAGE_DEFAULT,
    cursor: str | None = None,
    deep: bool = False,
) -> OrderPage:
    """Return the newest orders that match, below the cursor, at most `limit`.

    The page reads at most SEARCHED_MAX orders, and begins no further part after SEARCH_SECONDS. If `deep`, the limits
    are DEEP_SEARCHED_MAX and DEEP_SEARCH_SECONDS. Raises Problem 400 for an invalid cursor, and psycopg.Error, which is
    QueryCanceled if PostgreSQL is too slow to read any order or to end a savepoint.
    """
    before = from_cursor(cursor) if cursor else FIRST
    effort = _Effort(DEEP_SEARCHED_MAX, DEEP_SEARCH_SECONDS) if deep else _Effort(SEARCHED_MAX, SEARCH_SECONDS)
    with _snapshot(connection) as now:
        found = _Search(connection, wanted, limit, before, effort).find(now)
        ids = found.ids[:limit]
        orders = _orders(connection, ids)
    is_full = len(found.ids) > limit
    go_on = ids[-1] if is_full else found.go_on
    return OrderPage(
        orders,
        None if go_on is None else to_cursor(go_on),
        Searched(found.read, found.until, is_full or found.go_on is None),
        now,
    )


def count_newer(connection: Connection, wanted: OrderFilter, after: str) -> int:
    """Return how many matching orders are newer than the order `after`. The count stops at NEWER_MAX."""
    with _snapshot(connection):
        search = _Search(connection, wanted, NEWER_MAX, FIRST, _Effort(SEARCHED_MAX, SEARCH_SECONDS))
        found = search.walk("all", lowest=after)
    return sum(order_id > after for order_id in found.ids[:NEWER_MAX])


@contextmanager
def _snapshot(connection: Connection) -> Iterator[datetime]:
    """Run a block on one snapshot, each statement within STATEMENT_SECONDS. Yield PostgreSQL's time."""
    with connection.transaction():
        connection.execute(SQL["one_snapshot"])
        limit = {"limit": f"{STATEMENT_SECONDS * 1_000:.0f}ms"}
        row = connection.execute(SQL["limit_search"], limit).fetchone()
        assert row is not None
        now: datetime = row[0]
        yield now


class _Search(Struct, frozen=True):
    """A search for more than `limit` orders with ids below `before`."""

    connection: Connection
    wanted: OrderFilter
    limit: int
    before: str
    effort: _Effort

    def find(self, now: datetime) -> _Found:
        """Read the orders from the smallest source that has all of them."""
        wanted, statuses = self.wanted, set(self.wanted.statuses)
        if wanted.failure_reason is not None and statuses and "FAILED" not in statuses:
            return _Found([], None)
        if wanted.compensating and (found := self._all_pending("uncompensated")):
            return found
        is_open = wanted.stuck or (statuses and statuses <= {"PROCESSING", "PAID"})
        if is_open and (found := self._all_pending("open")):
            return found
        source: Source = "all"
        if wanted.failure_reason is not None:
            source = "reason"
        elif statuses and statuses <= {"FAILED", "CANCELLED"}:
            source = "unsuccessful"
        before, lowest = self.before, ""
        if wanted.min_age_seconds is not None:
            before = min(before, _id_at(now - timedelta(seconds=wanted.min_age_seconds) + CLOCK_MARGIN))
        if wanted.max_age_seconds is not None:
            lowest = _id_at(now - timedelta(seconds=wanted.max_age_seconds) - CLOCK_MARGIN)
        return replace(self, before=before).walk(source, lowest=lowest)

    def _all_pending(self, source: Source) -> _Found | None:
        """Read all orders with pending work of one kind. Return None if there are more than PENDING_MAX.

        Also returns None if the index has too many dead entries, as it has while a snapshot is held.
        """
        part = self._try_to_read(source, self.before, PENDING_MAX + 1, self.limit + 1)
        if part is None or part.read > PENDING_MAX:
            return None
        return _Found(list(part.ids), None, part.read, part.oldest)

    def walk(self, source: Source, *, lowest: str = "") -> _Found:
        """Read orders from newer to older ones, until more than `limit` match or the effort is made.

        Orders with an id below `lowest` cannot match. Raises QueryCanceled if the first part takes too long.
        """
        ends_at = time.monotonic() + self.effort.seconds
        found = _Found([], self.before)
        rows = self.limit + 1 if self.wanted == OrderFilter() else max(self.limit + 1, PART_FIRST)
        while found.go_on is not None and len(found.ids) <= self.limit and found.read < self.effort.orders:
            rows = min(rows, self.effort.orders - found.read)
            matches = self.limit + 1 - len(found.ids)
            read = self._try_to_read if found.read else self._read
            part = read(source, found.go_on, rows, matches)
            if part is None:
                break
            found.ids += part.ids
            found.read += part.read
            found.until = part.oldest or found.until
            found.go_on = part.last_id if part.read == rows and part.last_id and part.last_id >= lowest else None
            if time.monotonic() > ends_at:
                break
            rows = min(rows * PART_GROWTH, PART_MAX)
        return found

    def _try_to_read(self, source: Source, before: str, rows: int, matches: int) -> _Part | None:
        """Read one part of a source. Return None if that takes longer than STATEMENT_SECONDS.

        Raises QueryCanceled if the end of its savepoint takes longer, because the whole transaction has failed then.
        """
        try:
            with self.connection.transaction():
                return self._read(source, before, rows, matches)
        except psycopg.errors.QueryCanceled:
            if self.connection.info.transaction_status is TransactionStatus.INERROR:
                raise
            return None

    def _read(self, source: Source, before: str, rows: int, matches: int) -> _Part:
        parameters: dict[str, Any] = {
            **asdict(self.wanted),
            "statuses": list(self.wanted.statuses),
            "stuck_seconds": STUCK_SECONDS,
            "source": source,
            "before": before,
            "rows": rows,
            "matches": matches,
        }
        row = self.connection.execute(SQL["search"], parameters).fetchone()
        assert row is not None
        return _Part(*row)


def _orders(connection: Connection, ids: Sequence[str]) -> tuple[ListedOrder, ...]:
    """Return these orders, newest first."""
    rows = connection.execute(SQL["listed"], {"ids": ids}).fetchall() if ids else ()
    return tuple(_listed(row) for row in rows)


def _listed(row: Sequence[Any]) -> ListedOrder:
    """Return the order of a row of `listed`."""
    *columns, has_event, payment_state, is_pending, attempts, has_reservation = row
    order = ListedOrder(*columns)
    kind = waiting_kind(
        order.status,
        is_compensating=order.compensating,
        has_event=has_event,
        payment_state=payment_state,
        is_pending=is_pending,
        attempts=attempts,
        has_reservation=has_reservation,
    )
    return replace(order, waiting_for=kind)


def _id_at(at: datetime) -> str:
    """Return the smallest id of an order that a gateway made at this time."""
    digits = f"{max(0, int(at.timestamp() * 1000)):012x}"
    return f"{digits[:8]}-{digits[8:]}"
