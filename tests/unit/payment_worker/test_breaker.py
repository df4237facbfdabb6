"""The breaker opens only for a provider that answers no call, and closes with the first answer."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orderstream.payment_worker.breaker import (
    FAILURES_MAX,
    OPEN_MAX_SECONDS,
    PROBES_MAX,
    RETRY_AFTER_MAX_SECONDS,
    Breaker,
    Ticket,
    retry_after_limited,
)
from orderstream.payment_worker.lanes import LANES, Lane


def longest(_low: float, high: float) -> float:
    return high


def opened(now: float = 0, retry_after_seconds: float = 0) -> Breaker:
    """Return a breaker that opens at `now`."""
    breaker = Breaker(longest)
    for _ in range(FAILURES_MAX):
        breaker.fail(breaker.admit("new", now), now, retry_after_seconds)
    assert breaker.state(now) == "open"
    return breaker


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("f" * 9, "closed"),
        ("f" * 10, "open"),
        ("f" * 9 + "s" + "f" * 9, "closed"),
        ("f" * 9 + "s" + "f" * 10, "open"),
        ("f" * 9 + "d" + "f", "open"),
        ("d" * 50, "closed"),
        ("fs" * 100, "closed"),
        ("f" * 10 + "w", "half_open"),
        ("f" * 10 + "ws", "closed"),
        ("f" * 10 + "wf", "open"),
        ("f" * 10 + "wd", "half_open"),
        ("f" * 10 + "wfws", "closed"),
        ("f" * 10 + "ws" + "f" * 9, "closed"),
        ("f" * 10 + "ws" + "f" * 10, "open"),
    ],
)
def test_ten_failures_in_a_row_open_it_and_a_probe_closes_it(results: str, state: str) -> None:
    """s: success, f: failure, d: an end without a verdict, w: wait until the breaker is half-open."""
    breaker, now = Breaker(), 0.0
    for result in results:
        if result == "w":
            now += OPEN_MAX_SECONDS
            continue
        ticket = breaker.admit("new", now)
        if result == "s":
            breaker.succeed(ticket)
        elif result == "f":
            breaker.fail(ticket, now)
        else:
            breaker.drop(ticket)
    assert breaker.state(now) == state


def test_it_stays_open_twice_as_long_after_each_failed_probe_up_to_the_limit() -> None:
    breaker, now, lengths = opened(), 0.0, []
    for _ in range(5):
        began = now
        while breaker.state(now) == "open":
            now += 0.25
        lengths.append(now - began)
        breaker.fail(breaker.admit("new", now), now)
    assert lengths == [0.5, 1, 2, 2, 2]
    assert breaker.open_since == 0


def test_the_time_it_stays_open_varies_between_half_and_all() -> None:
    bounds: list[tuple[float, float]] = []

    def shortest(low: float, high: float) -> float:
        bounds.append((low, high))
        return low

    breaker = Breaker(shortest)
    for _ in range(FAILURES_MAX):
        breaker.fail(breaker.admit("new", 0), 0)
    assert bounds == [(0.25, 0.5)]
    assert (breaker.state(0.24), breaker.state(0.25)) == ("open", "half_open")


def test_a_success_starts_the_times_again() -> None:
    breaker = opened()
    breaker.fail(breaker.admit("new", 1), 1)
    breaker.succeed(breaker.admit("new", 2))
    for _ in range(FAILURES_MAX):
        breaker.fail(breaker.admit("new", 2), 2)
    assert (breaker.state(2.4), breaker.state(2.5)) == ("open", "half_open")


@pytest.mark.parametrize(("given", "open_seconds"), [(30, 30), (10_000, RETRY_AFTER_MAX_SECONDS), (0.1, 0.5)])
def test_it_stays_open_at_least_for_the_longest_retry_after(given: float, open_seconds: float) -> None:
    breaker = opened(0, given)
    assert (breaker.state(open_seconds - 0.01), breaker.state(open_seconds)) == ("open", "half_open")


@pytest.mark.parametrize(
    ("given", "obeyed"),
    [(0, 0), (-1, 0), (math.nan, 0), (math.inf, RETRY_AFTER_MAX_SECONDS), (301, RETRY_AFTER_MAX_SECONDS), (2.5, 2.5)],
)
def test_a_retry_after_is_limited(given: float, obeyed: float) -> None:
    assert retry_after_limited(given) == obeyed


def test_late_failures_do_not_keep_it_open_and_a_late_success_closes_it() -> None:
    breaker = Breaker(longest)
    tickets = [breaker.admit("new", 0) for _ in range(1_000)]
    for ticket in tickets[:900]:
        breaker.fail(ticket, 1, 0)
    assert (breaker.state(1.4), breaker.state(1.5)) == ("open", "half_open")
    for ticket in tickets[900:999]:
        breaker.fail(ticket, 1.4, 60)
    assert breaker.state(1.5) == "half_open"
    breaker.succeed(tickets[999])
    assert breaker.state(1.4) == "closed"


def test_calls_that_time_out_together_do_not_open_it_if_others_were_answered() -> None:
    """1,000 calls run and 5 % are never answered. The 50 time out one after the other, with no answer between them."""
    breaker = Breaker()
    tickets = [breaker.admit("new", 0) for _ in range(1_000)]
    for ticket in tickets[50:]:
        breaker.succeed(ticket)
    for ticket in tickets[:50]:
        breaker.fail(ticket, 10)
    assert breaker.state(10) == "closed"


def test_voids_that_hang_do_not_open_it_while_authorizations_are_answered() -> None:
    breaker = Breaker()
    for second in range(0, 100, 10):
        voids = [breaker.admit("void", second) for _ in range(200)]
        breaker.succeed(breaker.admit("new", second + 5))
        for void in voids:
            breaker.fail(void, second + 10)
    assert breaker.state(100) == "closed"


def test_each_lane_has_a_probe_of_its_own() -> None:
    breaker = opened()
    assert {breaker.room(lane, 0) for lane in LANES} == {0}
    assert [breaker.room(lane, 1) for lane in LANES] == [2, 2, 2, 2]
    for _ in range(2):
        breaker.admit("void", 1)
    assert {lane: breaker.room(lane, 1) for lane in LANES} == {"new": 1, "retry": 1, "void": 0, "void_retry": 1}
    held = [breaker.admit(lane, 1) for lane in ("new", "retry", "void_retry")]
    assert {breaker.room(lane, 1) for lane in LANES} == {0}
    breaker.drop(held[0])
    assert {lane: breaker.room(lane, 1) for lane in LANES} == {"new": 1, "retry": 0, "void": 0, "void_retry": 0}


def test_probes_that_still_run_count_after_it_opened_again() -> None:
    breaker = opened()
    first, *hanging = [breaker.admit(lane, 1) for lane in ("void", *LANES)]
    breaker.fail(first, 1)
    assert [breaker.room(lane, 10) for lane in LANES] == [1, 1, 1, 1]
    for probe in hanging:
        breaker.fail(probe, 10)
    assert [breaker.room(lane, 10) for lane in LANES] == [2, 2, 2, 2]


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["begin", "succeed", "fail", "drop", "wait"]), st.sampled_from(LANES), st.integers(0)
        ),
        max_size=120,
    )
)
def test_there_are_never_more_probes_than_the_limit_and_a_success_always_closes_it(
    steps: list[tuple[str, Lane, int]],
) -> None:
    breaker, now, running = Breaker(), 0.0, list[Ticket]()
    for step, lane, number in steps:
        now += 0.01
        if step == "wait":
            now += OPEN_MAX_SECONDS
        elif step == "begin":
            # A batch, so that failures in a row are likely.
            while breaker.room(lane, now) != 0 and len(running) < 15:
                running.append(breaker.admit(lane, now))
        elif running:
            ticket = running.pop(number % len(running))
            if step == "succeed":
                breaker.succeed(ticket)
                assert breaker.state(now) == "closed"
            elif step == "fail":
                breaker.fail(ticket, now)
            else:
                breaker.drop(ticket)
        assert sum(ticket.probe is not None for ticket in running) <= PROBES_MAX
        assert (breaker.open_since is None) == (breaker.state(now) == "closed")
