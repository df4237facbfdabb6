"""The times that a timer scans: new times soon, all times in the end, and never many at once (P5)."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from orderstream.worker.due_scan import (
    FIRST_SECONDS,
    FLOOR,
    LAG_SECONDS,
    RESOLUTION,
    SLICE_DIVISOR,
    SLICE_FIRST,
    SLICE_MIN,
    SLICE_SECONDS,
    SWEEP_PAUSE_SECONDS,
    SWEEP_SECONDS,
    DueScan,
    TimeRange,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


class Watch:
    """A clock of the process and a clock of the database. Only the test moves them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.due = DueScan(lambda: self.seconds)

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def run(self, cost_seconds: float = 0.0, taken: datetime | None = None) -> list[TimeRange]:
        """Scan all ranges of one run, each in `cost_seconds`. If `taken` is given, the first range is full."""
        ranges = []
        for part in self.due.ranges(self.now):
            self.seconds += cost_seconds
            ranges.append(part)
            self.due.note_scanned(part, taken, cost_seconds)
            if taken:
                break
        return ranges


def test_the_first_run_scans_all_possible_times_in_a_few_slices() -> None:
    ranges = Watch().run()
    assert ranges[0] == TimeRange(START - timedelta(seconds=FIRST_SECONDS), START)
    assert all(later.upto == earlier.after for earlier, later in pairwise(ranges))
    assert ranges[-1].after == FLOOR
    assert len(ranges) < 40


def test_the_next_runs_scan_the_times_since_the_last_run() -> None:
    watch = Watch()
    watch.run()
    for _ in range(3):
        before = watch.now
        watch.seconds += 1
        assert watch.run() == [TimeRange(before - timedelta(seconds=LAG_SECONDS), watch.now)]


def test_the_times_below_are_swept_again_after_a_pause() -> None:
    watch = Watch()
    watch.run()
    watch.seconds += SWEEP_PAUSE_SECONDS
    assert watch.run()[-1].after == FLOOR


def test_a_slow_sweep_pauses_and_continues_where_it_stopped() -> None:
    watch = Watch()
    lowest = watch.now
    for _ in range(5):
        ranges = watch.run(cost_seconds=3 * SLICE_SECONDS)
        assert len(ranges) - 1 <= SWEEP_SECONDS / SLICE_SECONDS
        assert ranges[1].upto <= lowest
        assert ranges[1].upto - ranges[1].after <= timedelta(seconds=10)
        lowest = ranges[-1].after


def test_after_a_full_run_the_next_run_begins_at_the_last_claimed_time() -> None:
    watch = Watch()
    taken = watch.now - timedelta(seconds=30)
    watch.run(taken=taken)
    assert watch.run(taken=taken)[0] == TimeRange(taken - RESOLUTION, watch.now)


def test_a_full_slice_is_scanned_again() -> None:
    watch = Watch()
    ranges = watch.due.ranges(watch.now)
    fresh = next(ranges)
    watch.due.note_scanned(fresh, None, 0)
    part = next(ranges)
    watch.due.note_scanned(part, part.upto, 0)
    assert next(ranges) == part


def test_after_a_quick_round_the_next_round_is_one_slice() -> None:
    watch = Watch()
    watch.run()
    watch.seconds += SWEEP_PAUSE_SECONDS
    _, sweep = watch.run()
    assert (sweep.after, sweep.is_limited) == (FLOOR, True)


def test_after_a_slow_round_the_next_round_begins_with_a_narrow_slice() -> None:
    watch = Watch()
    watch.run(cost_seconds=3 * SLICE_SECONDS)
    while watch.due._swept is not None:
        watch.run()
    watch.seconds += SWEEP_PAUSE_SECONDS
    first = watch.run()[1]
    assert first.upto - first.after == SLICE_FIRST


def test_after_a_timeout_of_the_whole_range_the_next_slice_is_narrow() -> None:
    """A transaction holds a snapshot, and the index has millions of dead entries now."""
    watch = Watch()
    watch.run()
    watch.seconds += SWEEP_PAUSE_SECONDS
    ranges = watch.due.ranges(watch.now)
    watch.due.note_scanned(next(ranges), None, 0)
    whole = next(ranges)
    assert whole.after == FLOOR
    watch.due.note_timeout()
    narrow = next(ranges)
    assert (narrow.upto, narrow.upto - narrow.after) == (whole.upto, SLICE_FIRST)
    while watch.due._swept is not None:
        watch.run()
    watch.seconds += SWEEP_PAUSE_SECONDS
    first = watch.run()[1]
    assert first.upto - first.after == SLICE_FIRST


def test_after_a_timeout_the_next_slice_is_narrower() -> None:
    watch = Watch()
    ranges = watch.due.ranges(watch.now)
    watch.due.note_scanned(next(ranges), None, 0)
    part = next(ranges)
    assert part.is_limited
    watch.due.note_timeout()
    narrower = next(ranges)
    assert (narrower.upto, narrower.upto - narrower.after) == (part.upto, SLICE_FIRST / SLICE_DIVISOR)
    watch.due.note_timeout()
    narrowest = next(ranges)
    assert narrowest.upto - narrowest.after == SLICE_MIN
    assert not narrowest.is_limited
