"""Counts the work that is still under way: events, open orders, compensations and refused records (P5)."""

from typing import TYPE_CHECKING

from msgspec import Struct

from orderstream.postgres.sql import load

if TYPE_CHECKING:
    from orderstream.postgres.connect import Connection

SQL = load("orderstream.audit", "under_way.sql")


class Backlog(Struct, frozen=True):
    """The rows of one kind that are under way, and the age of the oldest of them; None without rows."""

    number: int
    oldest_seconds: float | None


class UnderWay(Struct, frozen=True):
    """The work under way: unpublished events, open orders, aborted orders to compensate, records that Kafka refused."""

    outbox: Backlog
    open: Backlog
    uncompensated: Backlog
    refused: Backlog

    @property
    def is_quiet(self) -> bool:
        """Whether all orders are settled and compensated and all events are published. Refused records do not count."""
        return not (self.outbox.number or self.open.number or self.uncompensated.number)


class PaymentsUnderWay(Struct, frozen=True):
    """The numbers of payments without an answer, of those that the customer or bank must decide, and of voids to do."""

    without_answer: int
    pending: int
    voiding: int


def under_way(connection: "Connection", limit: int | None = None) -> UnderWay:
    """Return the work under way. With a limit, each count stops there, and few dead rows are read.

    Raises psycopg.Error.
    """
    row = connection.execute(SQL["under_way"], {"limit": limit}).fetchone()
    assert row is not None
    outbox, outbox_age, opened, opened_age, aborted, aborted_age, refused, refused_age = row
    return UnderWay(
        Backlog(outbox, outbox_age),
        Backlog(opened, opened_age),
        Backlog(aborted, aborted_age),
        Backlog(refused, refused_age),
    )


def payments_under_way(connection: "Connection", limit: int) -> PaymentsUnderWay:
    """Return the payments that are not finished. The count of each lane stops at `limit`. Raises psycopg.Error."""
    row = connection.execute(SQL["payments_under_way"], {"limit": limit}).fetchone()
    assert row is not None
    return PaymentsUnderWay(*row)
