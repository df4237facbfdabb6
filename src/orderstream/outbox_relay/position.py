"""Chooses the ranges of the outbox that the relay reads, so that it reads few dead index entries (P1, P5).

PostgreSQL cannot remove a deleted row while another session holds an older snapshot. Millions of dead entries then lie
at the low end of the index. Therefore a claim begins after the ids that were claimed a moment ago. A sweep reads the
range below, slice by slice, again and again. The sweep finds each row that was committed late or was inserted again.
"""

from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

LAG_SECONDS = 1.0
"""A claim does not read ids that were claimed this long ago. A row that is committed later waits for the sweep."""
SWEEP_SECONDS = 1.0
SLICE_FIRST_IDS = 10_000
SLICE_MIN_IDS = 1_000
SLICE_SECONDS = 0.01
"""A slice that takes less doubles the next slice. A slice that takes more than twice as long halves it."""
ID_MAX = 2**63 - 1


class Range(Struct, frozen=True):
    """The ids to read: greater than `after`, at most `upto`."""

    after: int
    upto: int


class _Size:
    """The number of ids of a slice. It adapts, so that a slice takes about SLICE_SECONDS despite dead rows."""

    def __init__(self) -> None:
        self.ids = SLICE_FIRST_IDS

    def learn(self, seconds: float) -> None:
        if seconds < SLICE_SECONDS:
            self.ids = min(2 * self.ids, ID_MAX)
        elif seconds > 2 * SLICE_SECONDS:
            self.halve()

    def halve(self) -> None:
        self.ids = max(self.ids // 2, SLICE_MIN_IDS)


class Position:
    """The relay's position in the outbox. A claim reads ids greater than `low`."""

    def __init__(self, clock: Callable[[], float], floor: int, last_id: int) -> None:
        """Begin after `floor`. Claims have an upper end until they reach `last_id`, the newest id at the start."""
        self._clock = clock
        self._low = floor
        self._start_end = last_id
        self._start_size = _Size()
        self._marks: deque[tuple[float, int]] = deque()
        self._sweep_end = 0
        self._sweep_size = _Size()
        self._sweep_seconds = 0.0
        """The time of the slices since the last pause of the sweep."""
        self._sweep_is_quick = False
        """Whether this sweep has had no pause yet."""
        self._sweep_is_whole = False
        """Whether the next sweep begins with the whole range."""
        self._sweep_due = clock()
        self.is_blocked = False
        """Whether the last claim failed."""

    @property
    def low(self) -> int:
        """A claim reads ids greater than this."""
        return self._low

    @property
    def is_starting(self) -> bool:
        """Whether the claims have not yet reached the newest id of the start."""
        return self._low < self._start_end

    def next_claim(self) -> Range:
        """Return the range of the next claim."""
        if self.is_starting:
            return Range(self._low, min(self._low + self._start_size.ids, self._start_end))
        while self._marks and self._marks[0][0] < self._clock() - LAG_SECONDS:
            self._low = max(self._low, self._marks.popleft()[1])
        return Range(self._low, ID_MAX)

    def claimed(self, part: Range, ids: Sequence[int], *, full: bool, seconds: float) -> None:
        """Note that the rows `ids` of a range were published. `full` says that the range may have more."""
        self.is_blocked = False
        if part.upto == ID_MAX:
            if ids:
                self._marks.append((self._clock(), max(ids)))
        elif not full:
            self._low = max(self._low, part.upto)
            self._start_size.learn(seconds)

    def put_back(self) -> None:
        """Note that a statement failed, or that claimed rows are in the outbox again."""
        self._marks.clear()
        self._start_size.halve()
        self._sweep_size.halve()
        self._sweep_is_quick = self._sweep_is_whole = False
        self.is_blocked = True

    def next_sweep(self) -> Range | None:
        """Return the range to sweep, or None if no sweep is due.

        Each sweep goes down from `low`. The newest ids have the most dead rows, and the sweep reads them in small
        slices. The ids below them have no rows and take few large slices. If the last sweep took less than
        SLICE_SECONDS in all, the next one is a single slice.
        """
        if self.is_starting or self._clock() < self._sweep_due:
            return None
        if self._sweep_end <= 0:
            self._sweep_end, self._sweep_size, self._sweep_is_quick = self._low, _Size(), True
            if self._sweep_is_whole:
                self._sweep_size.ids = max(self._low, SLICE_MIN_IDS)
        if self._sweep_end <= 0:
            return None
        return Range(max(self._sweep_end - self._sweep_size.ids, 0), self._sweep_end)

    def swept(self, part: Range, *, full: bool, seconds: float) -> None:
        """Note that the rows of a range were published. `full` says that the range may have more.

        The next slice is due at once, until the slices have taken SLICE_SECONDS in all or the sweep has ended.
        """
        if full:
            return
        self._sweep_end = part.after
        self._sweep_size.learn(seconds)
        self._sweep_seconds += seconds
        self._sweep_is_quick &= self._sweep_seconds < SLICE_SECONDS
        if self._sweep_seconds >= SLICE_SECONDS or self._sweep_end <= 0:
            self._sweep_is_whole = self._sweep_end <= 0 and self._sweep_is_quick
            self._sweep_seconds = 0.0
            self._sweep_due = self._clock() + SWEEP_SECONDS

    def raise_to(self, floor: int) -> None:
        """Move the start of claims up to `floor`, which another relay has stored."""
        self._low = max(self._low, floor)
