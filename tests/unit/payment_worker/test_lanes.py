"""The room of each lane: its reservation, its part of the shared room, and its turn if there is little room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orderstream.payment_worker.lanes import LANES, WAIT_SECONDS, Lane, Lanes


def taken(capacity: int, **used: int) -> Lanes:
    """Return lanes in which each named lane has begun a number of calls."""
    lanes = Lanes(capacity)
    for lane in LANES:
        for _ in range(used.get(lane, 0)):
            assert lanes.room(lane, 0) > 0
            lanes.take(lane)
    return lanes


def rooms(lanes: Lanes, now: float = 0) -> dict[Lane, int]:
    return {lane: lanes.room(lane, now) for lane in LANES}


@pytest.mark.parametrize(
    ("capacity", "used", "room"),
    [
        (1_000, {}, {"new": 600, "retry": 200, "void": 300, "void_retry": 200}),
        (1_000, {"new": 500}, {"new": 100, "retry": 200, "void": 300, "void_retry": 200}),
        (1_000, {"new": 600}, {"new": 0, "retry": 100, "void": 200, "void_retry": 100}),
        (1_000, {"void": 300}, {"new": 500, "retry": 100, "void": 0, "void_retry": 100}),
        (1_000, {"void_retry": 150}, {"new": 550, "retry": 150, "void": 250, "void_retry": 50}),
        (1_000, {"new": 550, "retry": 150}, {"new": 0, "retry": 0, "void": 200, "void_retry": 100}),
        (10_000, {}, {"new": 6_000, "retry": 2_000, "void": 3_000, "void_retry": 2_000}),
        (10, {}, {"new": 6, "retry": 2, "void": 3, "void_retry": 2}),
        (3, {"new": 3}, {"new": 0, "retry": 0, "void": 0, "void_retry": 0}),
        (1, {}, {"new": 1, "retry": 1, "void": 1, "void_retry": 1}),
        (1, {"void": 1}, {"new": 0, "retry": 0, "void": 0, "void_retry": 0}),
    ],
)
def test_a_lane_has_its_unused_reserved_room_and_the_unused_shared_room(
    capacity: int, used: dict[str, int], room: dict[Lane, int]
) -> None:
    assert rooms(taken(capacity, **used)) == room


def test_room_that_a_call_gives_back_can_be_used_again() -> None:
    lanes = taken(10, void=3)
    assert lanes.overflow("void") == 1
    lanes.give("void")
    assert lanes.overflow("void") == 0
    assert rooms(lanes) == {"new": 6, "retry": 2, "void": 1, "void_retry": 2}


def test_lanes_that_wait_for_shared_room_take_turns() -> None:
    lanes = taken(1, new=1)
    for lane in ("void", "retry", "void"):
        lanes.wait(lane, 0)
    lanes.give("new")
    assert rooms(lanes) == {"new": 0, "retry": 0, "void": 1, "void_retry": 0}
    lanes.take("void")
    lanes.wait("void", 0)
    lanes.give("void")
    assert rooms(lanes) == {"new": 0, "retry": 1, "void": 0, "void_retry": 0}


def test_a_lane_loses_its_place_if_it_does_not_repeat_its_request() -> None:
    lanes = taken(1, new=1)
    lanes.wait("void", 0)
    lanes.wait("retry", 1)
    lanes.give("new")
    assert rooms(lanes, WAIT_SECONDS + 0.1)["retry"] == 1
    lanes.wait("void", WAIT_SECONDS + 0.1)
    assert rooms(lanes, WAIT_SECONDS + 0.2) == {"new": 0, "retry": 1, "void": 0, "void_retry": 0}
    assert rooms(lanes, 10) == dict.fromkeys(LANES, 1)


def test_a_lane_with_reserved_room_does_not_wait_for_others() -> None:
    lanes = taken(10, void=3)
    lanes.wait("void", 0)
    assert rooms(lanes)["new"] == 5


@given(
    capacity=st.integers(1, 30),
    steps=st.lists(st.tuples(st.sampled_from(["take", "give", "wait"]), st.sampled_from(LANES)), max_size=80),
)
def test_lanes_never_exceed_the_capacity_and_never_use_the_reserved_room_of_another(
    capacity: int, steps: list[tuple[str, Lane]]
) -> None:
    lanes, used = Lanes(capacity), dict.fromkeys(LANES, 0)
    reserved = {"new": capacity // 2, "retry": capacity // 10, "void": capacity // 5, "void_retry": capacity // 10}
    for now, (step, lane) in enumerate(steps):
        if step == "take" and lanes.room(lane, now):
            lanes.take(lane)
            used[lane] += 1
        elif step == "give" and used[lane]:
            lanes.give(lane)
            used[lane] -= 1
        elif step == "wait":
            lanes.wait(lane, now)
        assert sum(used.values()) <= capacity
        assert all(lanes.room(other, now) >= reserved[other] - used[other] for other in LANES)
        if sum(used.values()) < capacity:
            assert any(lanes.room(other, now) for other in LANES)
