"""Where the relay looks for rows in the outbox, so that it reads few dead index entries (P1, P5).

PostgreSQL cannot remove a deleted row while another session holds an older snapshot. Millions of dead entries then lie
at the low end of the index. So a claim begins behind the ids that were claimed a moment ago, and a sweep walks over the
range below, slice by slice and without end. The sweep finds each row that was committed late or was put back.
"""

from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

LAG_SECONDS = 1.0
"""A claim passes over ids that were claimed so long ago. A row that is committed later waits for the sweep."""
SWEEP_SECONDS = 0.5
SLICE_FIRST_IDS = 10_000
SLICE_MIN_IDS = 1_000
SLICE_SECONDS = 0.01
"""A slice that takes less doubles the next one, and one that takes more than twice as long halves it."""
ID_MAX = 2**63 - 1


class Range(Struct, frozen=True):
    """The ids to look at: greater than `after`, at most `upto`."""

    after: int
    upto: int


class _Walk:
    """A walk over the ids in slices that each cost about SLICE_SECONDS."""

    def __init__(self, after: int) -> None:
        self.after = after
        self._ids = SLICE_FIRST_IDS

    def slice(self, end: int) -> Range:
        return Range(self.after, min(self.after + self._ids, end))

    def walked(self, part: Range, seconds: float) -> None:
        self.after = part.upto
        if seconds < SLICE_SECONDS:
            self._ids = min(2 * self._ids, ID_MAX)
        elif seconds > 2 * SLICE_SECONDS:
            self._ids = max(self._ids // 2, SLICE_MIN_IDS)


class Position:
    """The relay's place in the outbox. `low` is the id behind which a claim begins."""

    def __init__(self, clock: Callable[[], float], floor: int, last_id: int) -> None:
        """Begin behind `floor`, and walk to `last_id`, the newest id, before claiming without an upper end."""
        self._clock = clock
        self._end = last_id
        self._start = _Walk(floor)
        self._sweep = _Walk(0)
        self._swept_at = clock()
        self._marks: deque[tuple[float, int]] = deque()
        self._low = floor
        self.is_blocked = False
        """Whether the last claim came to nothing."""

    @property
    def low(self) -> int:
        """The id behind which a claim begins."""
        return self._low

    @property
    def is_starting(self) -> bool:
        """Whether the walk to the newest id of the start is not over."""
        return self._start.after < self._end

    def next_claim(self) -> Range:
        """Return the range of the next claim."""
        if self.is_starting:
            return self._start.slice(self._end)
        while self._marks and self._marks[0][0] < self._clock() - LAG_SECONDS:
            self._low = max(self._low, self._marks.popleft()[1])
        return Range(self._low, ID_MAX)

    def claimed(self, part: Range, ids: Sequence[int], *, full: bool, seconds: float) -> None:
        """Note that the rows `ids` of a range were published; `full` says that there may be more in it."""
        self.is_blocked = False
        if part.upto < ID_MAX and self.is_starting:
            if not full:
                self._start.walked(part, seconds)
                self._low = part.upto
        elif ids:
            self._marks.append((self._clock(), max(ids)))

    def put_back(self) -> None:
        """Note that claimed rows are in the outbox again."""
        self._marks.clear()
        self.is_blocked = True

    def next_sweep(self) -> Range | None:
        """Return the range to sweep if it is time, else None."""
        if self.is_starting or self._low == 0 or self._clock() - self._swept_at < SWEEP_SECONDS:
            return None
        self._swept_at = self._clock()
        if self._sweep.after >= self._low:
            self._sweep.after = 0
        return self._sweep.slice(self._low)

    def swept(self, part: Range, *, full: bool, seconds: float) -> None:
        """Note that all rows in a range were published; `full` says that there may be more in it."""
        if full:
            self._swept_at -= SWEEP_SECONDS
        else:
            self._sweep.walked(part, seconds)

    def raise_to(self, floor: int) -> None:
        """Begin claims behind `floor`, as another relay does."""
        self._low = max(self._low, floor)
