"""The room for calls under load: lanes, calls that are ended for others, and the breaker (P2)."""

from functools import partial
from typing import Any

from orderstream.domain.payment import (
    Authorized,
    NothingToVoid,
    Unanswered,
    Voided,
)
from orderstream.payment_worker.breaker import FAILURES_MAX, OPEN_MAX_SECONDS
from orderstream.payment_worker.lanes import LANES, Lane
from orderstream.payment_worker.providers.protocol import (
    ProviderRefusedError,
    ProviderUnavailableError,
)
from tests.support.waiting import wait_until
from tests.unit.payment_worker.calling import (
    LIMIT_SECONDS,
    Clock,
    Provider,
    begun,
    collected,
    request,
    requests,
    started,
)


def test_voids_that_hang_delay_neither_new_orders_nor_the_first_voids_of_others(provider: Provider) -> None:
    """1,000 voids hang: the first attempts fill their lane, and further attempts fill another lane."""
    clock = Clock()
    with started(provider, 1_000, clock=clock) as calls:
        calls.begin(requests("hangs", 1_000, "void"), held=False)
        begun(provider, 300)
        assert {lane: calls.room(lane) for lane in LANES} == {"new": 500, "retry": 100, "void": 0, "void_retry": 100}
        clock.now += 1.5
        calls.make_room("void")
        ended = collected(calls, 300)
        assert set(ended.values()) == {Unanswered()}
        calls.forget("void", ended)
        wait_until(lambda: calls.room("void") == 300, LIMIT_SECONDS, "the calls have ended")
        calls.begin([request(order_id, "void_retry", 1) for order_id in ended], held=False)
        begun(provider, 500)
        assert {lane: calls.room(lane) for lane in LANES} == {"new": 500, "retry": 100, "void": 200, "void_retry": 0}
        provider.answers = {"healthy": Voided(), "order": Authorized()}
        calls.begin([request("healthy", "void"), request("order")], held=False)
        assert collected(calls, 2) == {"healthy": Voided(), "order": Authorized()}


def test_make_room_ends_only_calls_that_took_longer_than_their_share(provider: Provider) -> None:
    clock = Clock()
    with started(provider, 10, clock=clock) as calls:
        calls.begin([request("first", "void"), request("again", "void", 1)], held=False)
        begun(provider, 2)
        clock.now += 1.5
        calls.begin([request("late", "void")], held=False)
        begun(provider, 3)
        calls.make_room("new")
        calls.make_room("void")
        assert collected(calls, 1) == {"first": Unanswered()}
        clock.now += 0.6
        calls.forget("void", ["first"])
        wait_until(lambda: calls.room("void") == 1, LIMIT_SECONDS, "the call has ended")
        calls.begin([request("next", "void")], held=False)
        begun(provider, 4)
        calls.make_room("void")
        assert collected(calls, 1) == {"again": Unanswered()}


def test_make_room_gives_calls_four_times_the_time_of_an_average_answer(provider: Provider) -> None:
    clock = Clock()
    with started(provider, 10, clock=clock) as calls:
        calls.begin([request("answered", "void")], held=False)
        begun(provider, 1)
        clock.now += 1
        provider.answer("answered", Voided())
        collected(calls, 1)
        calls.forget("void", ["answered"])
        calls.begin(requests("hangs", 3, "void"), held=False)
        begun(provider, 4)
        clock.now += 4
        calls.make_room("void")
        calls.begin([request("probe")], held=False)
        begun(provider, 5)
        assert calls.ended(10) == []
        clock.now += 0.1
        calls.make_room("void")
        assert len(collected(calls, 3)) == 3


def test_make_room_waits_longer_if_the_provider_answers_no_other_call_meanwhile(provider: Provider) -> None:
    """It may have become slow. If no call could last until its answer, no order would ever be paid."""
    clock = Clock()
    with started(provider, 10, clock=clock) as calls:
        calls.begin(requests("first", 6), held=False)
        begun(provider, 6)
        clock.now += 1.5
        calls.make_room("new")
        calls.forget("authorize", collected(calls, 6))
        wait_until(lambda: calls.room("new") == 6, LIMIT_SECONDS, "the calls have ended")
        calls.begin(requests("next", 6), held=False)
        begun(provider, 12)
        clock.now += 2.9
        calls.make_room("new")
        provider.answer("next-0", Authorized())
        assert collected(calls, 1) == {"next-0": Authorized()}


def test_make_room_does_not_wait_longer_if_the_provider_answers_other_calls(provider: Provider) -> None:
    clock = Clock()
    with started(provider, 10, clock=clock) as calls:
        for number in range(2):
            calls.begin(requests(f"hangs-{number}", 6), held=False)
            begun(provider, 7 * number + 6)
            clock.now += 1.5
            provider.answers["void"] = Voided()
            calls.begin([request("void", "void")], held=False)
            collected(calls, 1)
            calls.forget("void", ["void"])
            calls.make_room("new")
            calls.forget("authorize", collected(calls, 6))
            wait_until(lambda: calls.room("new") == 6, LIMIT_SECONDS, "the calls have ended")


def test_make_room_can_end_a_call_of_another_lane_that_uses_shared_room(provider: Provider) -> None:
    clock = Clock()
    with started(provider, 10, clock=clock) as calls:
        calls.begin([request("oldest")], held=False)
        begun(provider, 1)
        clock.now += 1
        calls.begin([*requests("new", 5), *requests("void", 2, "void")], held=False)
        begun(provider, 8)
        assert {lane: calls.room(lane) for lane in LANES} == {"new": 0, "retry": 1, "void": 0, "void_retry": 1}
        clock.now += 2
        calls.make_room("void")
        assert collected(calls, 3) == dict.fromkeys(["oldest", "void-0", "void-1"], Unanswered())


def test_with_room_for_one_call_each_lane_gets_its_turn(provider: Provider) -> None:
    clock = Clock()
    with started(provider, 1, clock=clock) as calls:
        calls.begin([request("new")], held=False)
        begun(provider, 1)
        lanes: list[Lane] = ["void", "retry", "void_retry"]
        for number, lane in enumerate(lanes):
            clock.now += 11
            calls.make_room(lane)
            collected(calls, 1)
            (ended,) = calls.ended(2)
            calls.forget(ended.request.kind, [ended.request.order_id])
            wait_until(partial(calls.room, lane), LIMIT_SECONDS, "the call has ended")
            assert (calls.room(lane), calls.room("new")) == (1, 0)
            calls.begin([request("new-2"), request(lane, lane)], held=False)
            begun(provider, number + 2)
        assert provider.most == 1


def test_the_breaker_stops_the_calls_to_a_provider_that_refuses_them(
    provider: Provider, lines: list[tuple[str, dict[str, Any]]]
) -> None:
    clock = Clock()
    with started(provider, clock=clock) as calls:
        batch = requests("order", FAILURES_MAX)
        provider.answers = {made.order_id: ProviderRefusedError("503", 20) for made in batch}
        calls.begin(batch, held=False)
        collected(calls, FAILURES_MAX)
        assert {calls.room(lane) for lane in LANES} == {0}
        clock.now += 19
        assert (calls.state().breaker, calls.state().open_seconds) == ("open", 19)
        calls.begin([request("stopped")], held=False)
        clock.now += 1
        assert calls.state().breaker == "half_open"
        assert [calls.room(lane) for lane in LANES] == [2, 2, 2, 2]
        calls.begin([request("new"), request("void", "void")], held=False)
        provider.answer("void", NothingToVoid())
        collected(calls, FAILURES_MAX + 1)
        assert (calls.state().breaker, calls.state().open_seconds) == ("closed", None)
        assert "stopped" not in provider.begun
    assert [event for event, _ in lines] == [
        *("provider_breaker_opened", "provider_failed", "provider_breaker_closed"),
    ]


def test_a_probe_has_less_time_so_that_a_return_of_the_provider_is_seen_soon(provider: Provider) -> None:
    clock = Clock()
    with started(provider, clock=clock) as calls:
        batch = requests("order", FAILURES_MAX)
        provider.answers = {made.order_id: ProviderUnavailableError("reset") for made in batch}
        calls.begin(batch, held=False)
        collected(calls, FAILURES_MAX)
        clock.now += OPEN_MAX_SECONDS
        calls.begin([request("probe")], held=False)
        begun(provider, FAILURES_MAX + 1)
        assert provider.contexts[-1].timeout_seconds == 1


def test_calls_that_make_room_ends_do_not_open_the_breaker(provider: Provider) -> None:
    clock = Clock()
    with started(provider, clock=clock) as calls:
        calls.begin(requests("hangs", 30, "void"), held=False)
        begun(provider, 30)
        clock.now += 1.5
        calls.make_room("void")
        collected(calls, 30)
        assert calls.state().breaker == "closed"
