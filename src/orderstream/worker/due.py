"""Where a timer looks for rows that are due, so that it reads few dead index entries (P5).

PostgreSQL cannot remove the index entry of a settled order or payment while another session holds an older snapshot.
Millions of dead entries then lie at the low end of the index. The time at which a row is due only moves forward, so a
claim begins behind the times that were looked at a moment ago. A sweep walks down the range below, slice by slice. It
finds each row that another transaction held or committed late.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

LAG_SECONDS = 5.0
"""A claim passes over times that were looked at so long ago. What was held then waits for the sweep."""
FIRST_SECONDS = 60.0
"""The first claim looks back so far; the sweep looks further."""
SWEEP_PAUSE_SECONDS = 10.0
"""Between two rounds of the sweep."""
SWEEP_SECONDS = 0.02
"""After so long the sweep makes way for the next batch."""
SLICE_SECONDS = 0.01
"""A slice that takes less doubles the next one, and one that takes more than twice as long halves it."""
SLICE_STATEMENT_SECONDS = 0.05
"""A statement that looks at a slice is ended after so long: the slice has far more dead entries than the one before."""
SLICE_FIRST = timedelta(seconds=10)
SLICE_MIN = timedelta(seconds=1)
"""A slice of this width is not limited, so that the sweep always goes on."""
SLICE_DIVISOR = 8
"""A slice that took too long is tried again with this part of its width."""
SLICE_MAX = timedelta(days=3_650)
FLOOR = datetime(2000, 1, 1, tzinfo=UTC)
"""No row is due before."""
RESOLUTION = timedelta(microseconds=1)
"""Of PostgreSQL's times."""

SQL = load("orderstream.postgres")


class Range(Struct, frozen=True):
    """The times to look at: later than `after`, at most `upto`."""

    after: datetime
    upto: datetime
    is_limited: bool = False


@contextmanager
def limits(connection: Connection, part: Range) -> Iterator[None]:
    """Limit the statements of a block that looks at a slice. Raises psycopg.errors.QueryCanceled at the limit.

    The block is a transaction then, which is rolled back.
    """
    if not part.is_limited:
        yield
        return
    with connection.transaction():
        connection.execute(SQL["limit_statements"], {"limit": f"{SLICE_STATEMENT_SECONDS * 1_000:.0f}ms"})
        yield


class DueRows:
    """The place of a timer in its index. Times are the database's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._low: datetime | None = None
        self._swept: datetime | None = None
        self._slice = SLICE_FIRST
        self._sweep_at = clock()

    def ranges(self, now: datetime) -> Iterator[Range]:
        """Yield the range above what was looked at, then slices of the range below, until SWEEP_SECONDS are over.

        Each range must be given to `looked` before the next one is taken.
        """
        low = self._low or now - timedelta(seconds=FIRST_SECONDS)
        self._low = low
        yield Range(low, max(low, now))
        started = self._clock()
        if started < self._sweep_at:
            return
        if self._swept is None:
            self._swept, self._slice = low, SLICE_FIRST
        while self._swept > FLOOR and self._clock() - started < SWEEP_SECONDS:
            yield Range(max(self._swept - self._slice, FLOOR), self._swept, is_limited=self._slice > SLICE_MIN)
        if self._swept <= FLOOR:
            self._swept = None
            self._sweep_at = self._clock() + SWEEP_PAUSE_SECONDS

    def looked(self, part: Range, latest: datetime | None, seconds: float) -> None:
        """Note that a range was looked at. If there may be more in it, `latest` is the latest time that was taken.

        There may be more at `latest` itself: rows of one transaction are due at the same time.
        """
        if self._swept is None or part.upto > self._swept:
            behind = latest - RESOLUTION if latest else part.upto - timedelta(seconds=LAG_SECONDS)
            self._low = max(part.after, behind)
        elif latest is None:
            self._swept = part.after
            if seconds < SLICE_SECONDS:
                self._slice = min(2 * self._slice, SLICE_MAX)
            elif seconds > 2 * SLICE_SECONDS:
                self._slice = max(self._slice / 2, SLICE_MIN)

    def took_too_long(self) -> None:
        """Note that a slice was not looked at within SLICE_STATEMENT_SECONDS. A narrower one is next."""
        self._slice = max(self._slice / SLICE_DIVISOR, SLICE_MIN)
