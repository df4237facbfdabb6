"""Where the watchdog looks: soon at what is new, in the end at everything, and never at much at once (P5)."""

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
    """A clock of the process, and one of the database, which both stand still by themselves."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.due = DueScan(lambda: self.seconds)

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def run(self, cost_seconds: float = 0.0, taken: datetime | None = None) -> list[TimeRange]:
        """Look at everything that a run may, each range at a cost; the first is full if `taken` is given."""
        ranges = []
        for part in self.due.ranges(self.now):
            self.seconds += cost_seconds
            ranges.append(part)
            self.due.note_scanned(part, taken, cost_seconds)
            if taken:
                break
        return ranges


def test_the_first_run_looks_at_everything_there_can_be_in_a_few_slices() -> None:
    ranges = Watch().run()
    assert ranges[0] == TimeRange(START - timedelta(seconds=FIRST_SECONDS), START)
    assert all(later.upto == earlier.after for earlier, later in pairwise(ranges))
    assert ranges[-1].after == FLOOR
    assert len(ranges) < 40


def test_the_next_runs_look_at_what_has_become_due_since() -> None:
    watch = Watch()
    watch.run()
    for _ in range(3):
        before = watch.now
        watch.seconds += 1
        assert watch.run() == [TimeRange(before - timedelta(seconds=LAG_SECONDS), watch.now)]


def test_what_is_below_is_swept_again_after_a_pause() -> None:
    watch = Watch()
    watch.run()
    watch.seconds += SWEEP_PAUSE_SECONDS
    assert watch.run()[-1].after == FLOOR


def test_a_sweep_over_many_dead_entries_makes_way_and_goes_on_where_it_was() -> None:
    watch = Watch()
    lowest = watch.now
    for _ in range(5):
        ranges = watch.run(cost_seconds=3 * SLICE_SECONDS)
        assert len(ranges) - 1 <= SWEEP_SECONDS / SLICE_SECONDS
        assert ranges[1].upto <= lowest
        assert ranges[1].upto - ranges[1].after <= timedelta(seconds=10)
        lowest = ranges[-1].after


def test_a_full_run_goes_on_at_the_time_of_what_it_took_last() -> None:
    watch = Watch()
    taken = watch.now - timedelta(seconds=30)
    watch.run(taken=taken)
    assert watch.run(taken=taken)[0] == TimeRange(taken - RESOLUTION, watch.now)


def test_a_full_slice_is_looked_at_again() -> None:
    watch = Watch()
    ranges = watch.due.ranges(watch.now)
    fresh = next(ranges)
    watch.due.note_scanned(fresh, None, 0)
    part = next(ranges)
    watch.due.note_scanned(part, part.upto, 0)
    assert next(ranges) == part


def test_each_round_begins_with_a_narrow_slice() -> None:
    watch = Watch()
    watch.run()
    watch.seconds += SWEEP_PAUSE_SECONDS
    first = watch.run()[1]
    assert first.upto - first.after == SLICE_FIRST


def test_a_slice_that_took_too_long_is_tried_again_with_a_narrower_one() -> None:
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
