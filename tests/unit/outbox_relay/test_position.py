"""The ranges that the relay reads: after the last claimed ids, and repeatedly in slices below them (P1)."""

from orderstream.outbox_relay.position import (
    ID_MAX,
    LAG_SECONDS,
    SLICE_FIRST_IDS,
    SLICE_MIN_IDS,
    SLICE_SECONDS,
    SWEEP_SECONDS,
    Position,
    Range,
)

SLOW = 3 * SLICE_SECONDS


class Clock:
    """A clock that a test moves."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def _at(low: int, clock: Clock) -> Position:
    """Return a position that has begun at `low`."""
    position = Position(clock, low, low)
    assert position.next_claim() == Range(low, ID_MAX)
    return position


def test_a_claim_skips_ids_only_some_time_after_their_claim() -> None:
    clock = Clock()
    position = _at(100, clock)
    position.claimed(position.next_claim(), [101, 105, 103], full=False, seconds=0)
    clock.now += LAG_SECONDS / 2
    position.claimed(position.next_claim(), [120], full=False, seconds=0)
    assert position.next_claim() == Range(100, ID_MAX)
    clock.now += LAG_SECONDS * 0.75
    assert position.next_claim() == Range(105, ID_MAX)
    clock.now += LAG_SECONDS
    assert position.next_claim() == Range(120, ID_MAX)


def test_rows_that_were_inserted_again_are_claimed_again() -> None:
    clock = Clock()
    position = _at(100, clock)
    position.claimed(position.next_claim(), [101], full=False, seconds=0)
    position.put_back()
    clock.now += 2 * LAG_SECONDS
    assert position.next_claim() == Range(100, ID_MAX)


def test_the_first_claims_go_from_the_floor_to_the_newest_id_in_slices() -> None:
    position = Position(Clock(), 50, 100_000)
    seen = [50]
    while position.is_starting:
        part = position.next_claim()
        assert part.after == seen[-1]
        assert part.upto - part.after <= SLICE_FIRST_IDS
        assert position.low == part.after
        position.claimed(part, [], full=False, seconds=SLOW)
        seen.append(part.upto)
    assert seen[-1] == 100_000
    assert position.next_claim() == Range(100_000, ID_MAX)


def test_the_first_claims_stay_at_a_slice_that_may_have_more() -> None:
    position = Position(Clock(), 0, 100)
    part = position.next_claim()
    position.claimed(part, [7], full=True, seconds=0)
    assert position.next_claim() == part
    position.put_back()
    assert position.next_claim() == part


def test_the_sweep_reads_every_id_below_repeatedly() -> None:
    clock = Clock()
    position = _at(35_000, clock)
    for _ in range(3):
        left = 35_000
        while left > 0:
            part = position.next_sweep()
            assert part is not None
            assert part.upto == left
            position.swept(part, full=False, seconds=1.5 * SLICE_SECONDS)
            assert position.next_sweep() is None
            clock.now += SWEEP_SECONDS
            left = part.after
        assert left == 0


def test_fast_slices_follow_each_other_until_the_sweep_ends() -> None:
    """Without dead rows, one round covers a billion ids."""
    position = _at(10**9, Clock())
    slices = 0
    while part := position.next_sweep():
        position.swept(part, full=False, seconds=0)
        slices += 1
    assert part is None
    assert slices < 20


def test_the_sweep_stays_at_a_slice_that_may_have_more_and_goes_on_at_once() -> None:
    position = _at(35_000, Clock())
    part = position.next_sweep()
    assert part is not None
    position.swept(part, full=True, seconds=SLOW)
    assert position.next_sweep() == part


def test_the_size_of_a_slice_adapts_to_its_time() -> None:
    clock = Clock()
    position = _at(10**12, clock)

    def size(seconds: float) -> int:
        part = position.next_sweep()
        assert part is not None
        position.swept(part, full=False, seconds=seconds)
        clock.now += SWEEP_SECONDS
        return part.upto - part.after

    cheap = [size(0) for _ in range(5)]
    assert cheap == [SLICE_FIRST_IDS * 2**number for number in range(5)]
    costly = [size(SLOW) for _ in range(20)]
    assert costly[-1] == SLICE_MIN_IDS


def test_while_sweeps_are_slow_each_reads_the_newest_ids_in_a_small_slice() -> None:
    """The newest ids have the dead rows that cannot be removed. A large slice would delay new rows."""
    clock = Clock()
    position = _at(10**9, clock)
    for _ in range(3):
        assert position.next_sweep() == Range(10**9 - SLICE_FIRST_IDS, 10**9)
        position.swept(Range(10**9 - SLICE_FIRST_IDS, 10**9), full=False, seconds=SLICE_SECONDS)
        clock.now += SWEEP_SECONDS
        while part := position.next_sweep():
            position.swept(part, full=False, seconds=0)
        clock.now += SWEEP_SECONDS


def test_after_a_quick_sweep_the_next_one_is_a_single_slice_until_it_is_slow() -> None:
    clock = Clock()
    position = _at(10**9, clock)
    while part := position.next_sweep():
        position.swept(part, full=False, seconds=0)
    for seconds in (0.0, SLICE_SECONDS / 2, SLICE_SECONDS):
        clock.now += SWEEP_SECONDS
        assert position.next_sweep() == Range(0, 10**9)
        position.swept(Range(0, 10**9), full=False, seconds=seconds)
        assert position.next_sweep() is None
    clock.now += SWEEP_SECONDS
    assert position.next_sweep() == Range(10**9 - SLICE_FIRST_IDS, 10**9)


def test_after_a_failure_the_next_sweep_begins_with_a_small_slice() -> None:
    clock = Clock()
    position = _at(10**9, clock)
    while part := position.next_sweep():
        position.swept(part, full=False, seconds=0)
    clock.now += SWEEP_SECONDS
    position.put_back()
    part = position.next_sweep()
    assert part is not None
    assert part.upto - part.after <= SLICE_FIRST_IDS


def test_a_failed_statement_is_repeated_with_fewer_ids() -> None:
    """The statement may have reached its time limit, and would reach it again."""
    position = Position(Clock(), 0, 10**9)
    position.put_back()
    assert position.next_claim() == Range(0, SLICE_FIRST_IDS // 2)


def test_the_floor_of_another_relay_only_moves_the_position_forward() -> None:
    position = _at(100, Clock())
    position.raise_to(90)
    assert position.low == 100
    position.raise_to(200)
    assert position.next_claim() == Range(200, ID_MAX)
