"""Samples Postgres: the work under way, the pace of orders, and the newest orders. Every count has a limit."""

from datetime import datetime
from decimal import Decimal

from msgspec import Struct
from psycopg.conninfo import make_conninfo

from orderstream.audit.under_way import PaymentsUnderWay, UnderWay, payments_under_way, under_way
from orderstream.local.backlog import COUNTED_MAX
from orderstream.postgres.connect import connect
from orderstream.postgres.limited import LimitedConnection
from orderstream.postgres.sql import load

ANSWER_SECONDS = 3.0
CONNECT_SECONDS = 2
PACE_MAX = 20_000
"""Orders that one sample counts as accepted at most. A span with more of them has no rate."""
LATEST_ORDERS = 5
NEWEST_ORDERS = 100
"""The newest orders whose statuses are counted."""
SETTLING_SECONDS = 1.0
"""The pace ends this long before now, because an order becomes visible a moment after it gets its id."""

SQL = load("orderstream.console.flow")


class LatestOrder(Struct, frozen=True, rename="camel"):
    """An order for the overview."""

    id: str
    user_id: str
    amount: Decimal
    currency: str
    status: str
    failure_reason: str | None
    created_at: datetime


class Pace(Struct, frozen=True):
    """Orders accepted since the last sample, and open ones of before its end. None: unknown, or above the limit."""

    seconds: float | None
    accepted: int | None
    open_before: int | None


class PostgresSample(Struct, frozen=True):
    """What waits in Postgres, what came since the last sample, and the newest orders."""

    under_way: UnderWay
    payments: PaymentsUnderWay
    pace: Pace
    latest: tuple[LatestOrder, ...]
    newest_by_status: dict[str, int]


class _Limited(LimitedConnection):
    answer_limit_seconds = ANSWER_SECONDS


class PostgresReader:
    """Keeps one connection and opens a new one after a failure."""

    def __init__(self, url: str) -> None:
        self._url = make_conninfo(url, connect_timeout=CONNECT_SECONDS)
        self._connection: _Limited | None = None
        self._upto: str | None = None
        self._at: float | None = None

    def ask(self) -> PostgresSample:
        """Return a sample. Raises psycopg.Error."""
        connection = self._opened()
        try:
            return PostgresSample(
                under_way(connection, COUNTED_MAX),
                payments_under_way(connection, COUNTED_MAX),
                self._pace(connection),
                *_newest(connection),
            )
        except BaseException:
            self.close()
            raise

    def _opened(self) -> _Limited:
        if self._connection is None or self._connection.closed:
            opened = connect(self._url, "console", _Limited)
            assert isinstance(opened, _Limited)
            opened.execute(SQL["set_reading"])
            self._connection = opened
        return self._connection

    def _pace(self, connection: _Limited) -> Pace:
        parameters = {"after": self._upto, "limit": PACE_MAX, "settling_seconds": SETTLING_SECONDS}
        row = connection.execute(SQL["pace"], parameters).fetchone()
        assert row is not None
        upto, at, accepted, open_before = row
        seconds = None if self._at is None else at - self._at
        self._upto, self._at = upto, at
        return Pace(
            seconds if seconds and seconds > 0 else None,
            None if accepted is None or accepted >= PACE_MAX else accepted,
            None if open_before >= PACE_MAX else open_before,
        )

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _newest(connection: _Limited) -> tuple[tuple[LatestOrder, ...], dict[str, int]]:
    latest = connection.execute(SQL["latest_orders"], {"limit": LATEST_ORDERS}).fetchall()
    statuses = connection.execute(SQL["newest_by_status"], {"limit": NEWEST_ORDERS}).fetchall()
    return tuple(LatestOrder(*row) for row in latest), {str(status): int(number) for status, number in statuses}
