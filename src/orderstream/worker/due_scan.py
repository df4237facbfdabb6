"""Chooses the ranges of times in which a timer looks for due rows, so that it reads few dead index entries (P5).

PostgreSQL cannot remove the index entry of a settled order or payment while another session holds an older snapshot.
Millions of dead entries then lie at the low end of the index. The time at which a row is due only moves forward.
Therefore a claim skips the times that were scanned more than LAG_SECONDS ago. A sweep scans these times, slice by
slice. The sweep finds each row that another transaction held or committed late. If the index has few dead entries, the
sweep is one slice, so that an idle worker runs few statements.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
from msgspec import Struct

from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

LAG_SECONDS = 5.0
"""A claim skips times that were scanned this long ago. The sweep finds rows that were locked during that scan."""
FIRST_SECONDS = 60.0
"""The first claim begins this long before now. The sweep scans the times below."""
SWEEP_PAUSE_SECONDS = 10.0
"""Pause between two rounds of the sweep."""
SWEEP_SECONDS = 0.02
"""Time after which the sweep gives way to the other timers."""
SLICE_SECONDS = 0.01
"""A slice that takes less doubles the next slice. A slice that takes more than twice as long halves it."""
SLICE_STATEMENT_SECONDS = 0.05
"""Limit of a statement that scans a slice. A slice that exceeds it has far more dead entries than the slice before."""
SLICE_FIRST = timedelta(seconds=10)
SLICE_MIN = timedelta(seconds=1)
"""A slice of this width has no limit, so that the sweep always makes progress."""
SLICE_DIVISOR = 8
"""After a timeout, the next slice has the width of the last one divided by this number."""
SLICE_MAX = timedelta(days=365_000)
"""A slice of this width reaches down to FLOOR."""
FLOOR = datetime(2000, 1, 1, tzinfo=UTC)
"""No row is due before this time."""
RESOLUTION = timedelta(microseconds=1)
"""Resolution of PostgreSQL's times."""

SQL = load("orderstream.postgres")


class TimeRange(Struct, frozen=True):
    """The times to scan: later than `after`, at most `upto`."""

    after: datetime
    upto: datetime
    is_limited: bool = False


@contextmanager
def statement_limit(connection: Connection, times: TimeRange) -> Iterator[None]:
    """Limit the time of each statement in a block that scans a slice.

    If the range is limited, the block is one transaction. At the limit, psycopg.errors.QueryCanceled is raised and the
    transaction is rolled back.
    """
    if not times.is_limited:
        yield
        return
    try:
        with connection.transaction():
            connection.execute(SQL["limit_statements"], {"limit": f"{SLICE_STATEMENT_SECONDS * 1_000:.0f}ms"})
            yield
    except psycopg.errors.QueryCanceled:
        # If the COMMIT itself reaches the limit, psycopg leaves the transaction open.
        connection.rollback()
        raise


class DueScan:
    """The position of a timer in its index. All times are the database's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._low: datetime | None = None
        self._swept: datetime | None = None
        self._slice = SLICE_FIRST
        self._is_quick = False
        """Whether no slice of this round of the sweep has been slow."""
        self._first_slice = SLICE_FIRST
        self._sweep_at = clock()

    def ranges(self, now: datetime) -> Iterator[TimeRange]:
        """Yield the range above the scanned times, then slices of the range below until SWEEP_SECONDS have passed.

        The caller reports each range with `note_scanned` before it takes the next one.
        """
        low = self._low or now - timedelta(seconds=FIRST_SECONDS)
        self._low = low
        yield TimeRange(low, max(low, now))
        started = self._clock()
        if started < self._sweep_at:
            return
        if self._swept is None:
            self._swept, self._slice, self._is_quick = low, self._first_slice, True
        while self._swept > FLOOR and self._clock() - started < SWEEP_SECONDS:
            yield TimeRange(max(self._swept - self._slice, FLOOR), self._swept, is_limited=self._slice > SLICE_MIN)
        if self._swept <= FLOOR:
            self._swept = None
            self._first_slice = SLICE_MAX if self._is_quick else SLICE_FIRST
            self._sweep_at = self._clock() + SWEEP_PAUSE_SECONDS

    def note_scanned(self, times: TimeRange, latest: datetime | None, seconds: float) -> None:
        """Note that a range was scanned in `seconds`. If it may hold more due rows, `latest` is the last claimed time.

        The next scan includes `latest`, because several rows of one transaction are due at the same time.
        """
        if self._swept is None or times.upto > self._swept:
            behind = latest - RESOLUTION if latest else times.upto - timedelta(seconds=LAG_SECONDS)
            self._low = max(times.after, behind)
        elif latest is None:
            self._swept = times.after
            if seconds < SLICE_SECONDS:
                self._slice = min(2 * self._slice, SLICE_MAX)
            elif seconds > 2 * SLICE_SECONDS:
                self._slice = max(self._slice / 2, SLICE_MIN)
                self._is_quick = False

    def note_timeout(self) -> None:
        """Note that the scan of a slice exceeded SLICE_STATEMENT_SECONDS. The next slice is narrower."""
        self._is_quick = False
        self._slice = max(min(self._slice / SLICE_DIVISOR, SLICE_FIRST), SLICE_MIN)
