"""Calls to the provider: their number, their room, their outcomes and their end (P2)."""

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

from orderstream.domain.payment import (
    Authorized,
    Declined,
    InFlight,
    NothingToVoid,
    Pending,
    Refused,
    Unanswered,
    Voided,
)
from orderstream.payment_worker.breaker import RETRY_AFTER_MAX_SECONDS
from orderstream.payment_worker.call import Ended
from orderstream.payment_worker.calls import HELD_SECONDS, STUCK_SECONDS, ProviderCalls
from orderstream.payment_worker.lanes import LANES
from orderstream.payment_worker.providers.protocol import (
    ProviderRefusedError,
    ProviderUnavailableError,
)
from orderstream.telemetry import metrics
from orderstream.telemetry.tracing import RecordedSpan, TraceContext, Tracer
from tests.support.waiting import wait_until
from tests.unit.payment_worker.calling import (
    LIMIT_SECONDS,
    SAMPLED,
    TRACER,
    Clock,
    Provider,
    begun,
    collected,
    request,
    requests,
    started,
)


def test_calls_answered_at_once_are_returned_within_the_time_of_the_batch(provider: Provider) -> None:
    batch = requests("order", 50)
    ids = [made.order_id for made in batch]
    provider.answers = dict.fromkeys(ids, Authorized())
    with started(provider) as calls:
        calls.begin(batch, held=True)
        assert calls.wait([*ids, "unknown"], 5) == dict.fromkeys(ids, Authorized())
        assert calls.ended(100) == []
        assert calls.room("new") == 10
        calls.forget("authorize", ids)
        assert calls.room("new") == 60


def test_no_more_calls_begin_than_there_is_room_for(provider: Provider) -> None:
    with started(provider, 10) as calls:
        assert calls.room("new") == 6
        batch = requests("order", 20)
        calls.begin(batch, held=True)
        found = calls.wait([made.order_id for made in batch], 0.001)
        assert found == {f"order-{number}": InFlight() for number in range(6)}
        assert calls.room("new") == 0
        begun(provider, 6)
        assert provider.most == 6


def test_calls_in_one_batch_of_several_lanes_share_the_room(provider: Provider) -> None:
    with started(provider, 10) as calls:
        calls.begin([*requests("new", 9), *requests("void", 9, "void"), *requests("more", 9)], held=False)
        begun(provider, 8)
        assert calls.state().in_flight == {"new": 6, "retry": 0, "void": 2, "void_retry": 0}


def test_before_the_start_and_after_the_close_there_is_no_room(provider: Provider) -> None:
    calls = ProviderCalls(provider, 10, 10, TRACER)
    assert {calls.room(lane) for lane in LANES} == {0}
    calls.begin([request("order")], held=False)
    calls.close(1)
    assert provider.begun == []


def test_a_slow_call_is_returned_after_its_release_until_it_is_forgotten(provider: Provider) -> None:
    woken = threading.Event()
    with started(provider) as calls:
        calls.on_ended = woken.set
        slow = request("slow", subject="row")
        calls.begin([slow], held=True)
        assert calls.wait(["slow"], 0) == {"slow": InFlight()}
        provider.answer("slow", Declined())
        assert calls.wait(["slow"], 5) == {"slow": Declined()}
        assert not woken.is_set()
        calls.release(["slow", "unknown"])
        assert woken.is_set()
        assert calls.ended(10) == calls.ended(10) == [Ended(slow, Declined())]
        calls.forget("authorize", ["slow"])
        assert calls.ended(10) == []


def test_a_released_call_wakes_the_timer_when_it_ends(provider: Provider) -> None:
    woken = threading.Event()
    with started(provider) as calls:
        calls.on_ended = woken.set
        calls.begin([request("first"), request("second", "void")], held=False)
        provider.answer("second", NothingToVoid())
        assert woken.wait(LIMIT_SECONDS)
        assert calls.ended(10) == [Ended(request("second", "void"), NothingToVoid())]


def test_ended_returns_the_oldest_calls_first_and_at_most_the_limit(provider: Provider) -> None:
    with started(provider) as calls:
        calls.begin(requests("order", 3), held=False)
        for number in (2, 0, 1):
            provider.answer(f"order-{number}", Pending())
            collected(calls, len(calls.ended(10)) + 1)
        assert [ended.request.order_id for ended in calls.ended(2)] == ["order-2", "order-0"]


def test_a_known_call_does_not_begin_again_until_it_is_forgotten(provider: Provider) -> None:
    with started(provider) as calls:
        calls.begin([request("order"), request("order")], held=True)
        calls.begin([request("order")], held=True)
        calls.begin([request("order", "void")], held=False)
        begun(provider, 2)
        provider.answer("order", Voided())
        collected(calls, 1)
        assert provider.begun == ["order", "order"]
        calls.forget("void", ["order"])
        provider.answers["order"] = Authorized()
        calls.begin([request("order")], held=True)
        calls.forget("authorize", ["order"])
        calls.begin([request("order")], held=True)
        assert calls.wait(["order"], 5) == {"order": Authorized()}
        assert len(provider.begun) == 3


def test_a_held_call_that_begins_again_unheld_is_released_with_the_new_request(provider: Provider) -> None:
    with started(provider) as calls:
        calls.begin([request("order", subject="record")], held=True)
        again = request("order", "retry", 1, subject="row")
        calls.begin([again], held=False)
        calls.begin([request("order", subject="record")], held=True)
        provider.answer("order", Authorized())
        collected(calls, 1)
        assert calls.ended(10) == [Ended(again, Authorized())]


def test_a_held_call_that_is_not_released_in_time_is_dropped(provider: Provider) -> None:
    clock = Clock()
    with started(provider, 10, clock=clock) as calls:
        calls.begin([request("dropped"), request("kept")], held=True)
        provider.answer("dropped", Authorized())
        assert calls.wait(["dropped"], 5) == {"dropped": Authorized()}
        clock.now += HELD_SECONDS - 1
        assert calls.room("new") == 4
        calls.begin([request("kept")], held=True)
        clock.now += 1
        assert calls.room("new") == 5
        assert calls.wait(["dropped", "kept"], 0) == {"kept": InFlight()}


def test_room_of_a_forgotten_call_is_in_use_while_the_call_runs(provider: Provider) -> None:
    with started(provider, 10) as calls:
        calls.begin([request("order")], held=False)
        begun(provider, 1)
        calls.forget("authorize", ["order"])
        assert calls.room("new") == 5
        provider.answer("order", Authorized())
        wait_until(lambda: calls.room("new") == 6, LIMIT_SECONDS, "the room is free")
        assert calls.ended(10) == []


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (ProviderUnavailableError("reset"), Unanswered()),
        (ValueError("a defect"), Unanswered()),
        (asyncio.CancelledError(), Unanswered()),
        (SystemExit(3), Unanswered()),
        (None, Unanswered()),
        (Voided(), Unanswered()),
        ("AUTHORIZED", Unanswered()),
        (Authorized, Unanswered()),
        (ProviderRefusedError("429", 2.5), Refused(2.5)),
        (ProviderRefusedError("503", 10_000), Refused(RETRY_AFTER_MAX_SECONDS)),
        (ProviderRefusedError("refused", -1), Refused()),
        (ProviderRefusedError("refused", cast("float", Decimal("2.5"))), Refused(2.5)),
        (ProviderRefusedError("refused", cast("float", timedelta(seconds=2))), Refused()),
    ],
)
def test_an_error_of_the_adapter_is_an_outcome_and_a_log_line(
    provider: Provider, lines: list[tuple[str, dict[str, Any]]], answer: object, outcome: object
) -> None:
    provider.answers["order"] = answer
    with started(provider) as calls:
        calls.begin([request("order")], held=True)
        (found,) = calls.wait(["order"], 5).values()
        assert found == outcome
        assert not isinstance(found, Refused) or type(found.retry_after_seconds) is float
        assert not any(calls.state().in_flight.values())
    ((event, fields),) = lines
    assert event == "provider_failed"
    assert (fields["order_id"], fields["kind"], fields["calls"]) == ("order", "authorize", 1)
    assert repr(answer)[:10] in fields["error"]


def test_the_failures_of_one_turn_are_one_log_line(provider: Provider, lines: list[tuple[str, dict[str, Any]]]) -> None:
    batch = requests("order", 30)
    provider.answers = {made.order_id: ProviderUnavailableError("down") for made in batch}
    with started(provider) as calls:
        calls.begin(batch, held=True)
        calls.wait([made.order_id for made in batch], 5)
    failed = [fields["calls"] for event, fields in lines if event == "provider_failed"]
    assert failed == [30]


def test_a_call_without_an_answer_ends_at_its_time_limit(provider: Provider) -> None:
    with started(provider, timeout_seconds=0.05) as calls:
        calls.begin([request("new"), request("void", "void")], held=False)
        assert collected(calls, 2) == {"new": Unanswered(), "void": Unanswered()}
        wait_until(lambda: not provider.running, LIMIT_SECONDS, "the adapter was cancelled")
        assert [context.timeout_seconds for context in provider.contexts] == [0.05, 0.05]


def test_calls_that_ignore_their_time_limit_and_use_half_of_the_room_are_logged(
    provider: Provider, lines: list[tuple[str, dict[str, Any]]]
) -> None:
    """New orders may use 60 % of the room only. So their stuck calls never use all of it."""
    clock = Clock()
    provider.ignores_cancellation = True
    with started(provider, 20, timeout_seconds=0.05, clock=clock) as calls:
        calls.begin(requests("order", 12), held=False)
        begun(provider, 12)
        clock.now += 1
        assert len(collected(calls, 12)) == 12
        clock.now += STUCK_SECONDS
        assert calls.room("new") == 0
        assert ("provider_calls_stuck", {"calls": 12}) in lines
        for number in range(12):
            provider.answer(f"order-{number}", Authorized())


def test_calls_that_ignore_their_time_limit_are_unanswered_but_keep_their_room(
    provider: Provider, lines: list[tuple[str, dict[str, Any]]]
) -> None:
    clock = Clock()
    provider.ignores_cancellation = True
    with started(provider, 2, timeout_seconds=0.05, clock=clock) as calls:
        calls.begin(requests("order", 2), held=False)
        begun(provider, 2)
        clock.now += 1
        assert collected(calls, 2) == {"order-0": Unanswered(), "order-1": Unanswered()}
        calls.forget("authorize", ["order-0", "order-1"])
        assert calls.room("new") == 0
        assert calls.state().in_flight["new"] == 2
        clock.now += STUCK_SECONDS
        calls.room("new")
        assert ("provider_calls_stuck", {"calls": 2}) in lines
        provider.answer("order-0", Authorized())
        wait_until(lambda: calls.room("new") == 1, LIMIT_SECONDS, "the room is free")
        assert calls.ended(10) == []
        provider.answer("order-1", Authorized())
        wait_until(lambda: calls.room("new") == 2, LIMIT_SECONDS, "the room is free")


def test_close_waits_for_calls_and_then_closes_the_provider(provider: Provider) -> None:
    calls = ProviderCalls(provider, 10, 10, TRACER)
    calls.start()
    calls.begin([request("order")], held=False)
    begun(provider, 1)
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(calls.close, LIMIT_SECONDS)
        wait_until(lambda: calls.room("new") == 0, LIMIT_SECONDS, "no further call may begin")
        calls.begin([request("late")], held=False)
        provider.answer("order", Authorized())
        closing.result(LIMIT_SECONDS)
    assert provider.is_closed
    assert collected(calls, 1) == {"order": Authorized()}
    calls.make_room("new")
    calls.close(1)
    assert provider.begun == ["order"]


@pytest.mark.parametrize("ignores_cancellation", [False, True])
def test_close_ends_within_its_time_although_calls_hang(*, provider: Provider, ignores_cancellation: bool) -> None:
    provider.ignores_cancellation = ignores_cancellation
    calls = ProviderCalls(provider, 10, 10, TRACER)
    calls.start()
    calls.begin([request("order")], held=False)
    begun(provider, 1)
    calls.close(0.5)
    wait_until(lambda: not calls._loop._thread.is_alive(), LIMIT_SECONDS, "the thread has ended")
    assert provider.is_closed
    assert collected(calls, 1) == {"order": Unanswered()}
    assert calls.state().breaker == "closed"


def test_close_reports_a_provider_that_cannot_be_closed(
    provider: Provider, lines: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise ValueError("no")

    monkeypatch.setattr(provider, "close", fail)
    with started(provider):
        pass
    assert lines == [("provider_not_closed", {"error": "ValueError('no')"})]


class Kept:
    """A sink that keeps the spans that it receives."""

    def __init__(self) -> None:
        self.spans: list[RecordedSpan] = []

    def record(self, span: RecordedSpan) -> None:
        self.spans.append(span)

    def shutdown(self) -> None:
        """There is nothing to send."""


def test_a_call_of_a_sampled_trace_has_a_span(provider: Provider) -> None:
    kept = Kept()
    provider.answers = {"paid": Authorized(), "void": ProviderUnavailableError("reset"), "unsampled": Authorized()}
    unsampled = TraceContext(f"{(SAMPLED.traceparent or '')[:-2]}00", None)
    with started(provider, tracer=Tracer(kept, 1)) as calls:
        calls.begin(
            [
                request("paid", trace=SAMPLED),
                request("void", "void_retry", 2, trace=SAMPLED),
                request("unsampled", trace=unsampled),
            ],
            held=False,
        )
        collected(calls, 3)
    authorize, void = kept.spans
    assert (authorize.name, authorize.kind, authorize.error) == ("authorize payment", "CLIENT", None)
    assert authorize.parent is not None
    assert authorize.parent.span_id == "b7ad6b7169203331"
    assert authorize.attributes == {
        "order.id": "paid",
        "provider.method": "authorize",
        "provider.outcome": "authorized",
        "attempt": 1,
    }
    assert (void.name, void.error) == ("void payment", "ProviderUnavailableError('reset')")
    assert void.attributes == {
        "order.id": "void",
        "provider.method": "void",
        "provider.outcome": "unanswered",
        "attempt": 3,
    }
    assert [context.span for context in provider.contexts] == [authorize, void, None]
    assert [context.trace for context in provider.contexts] == [authorize.context, void.context, unsampled]


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"orderstream_provider_{name}", labels) or 0.0


def test_the_metrics_count_running_and_ended_calls(provider: Provider) -> None:
    counted = [("authorize", "authorized"), ("authorize", "pending"), ("void", "voided")]

    def numbers() -> list[tuple[float, float]]:
        return [
            (value("answers_total", outcome=outcome), value("call_seconds_count", kind=kind, outcome=outcome))
            for kind, outcome in counted
        ]

    before = numbers()
    with started(provider) as calls:
        calls.begin([request("paid"), request("waits", "retry"), request("voided", "void")], held=False)
        begun(provider, 3)
        assert [value("calls_in_flight", lane=lane) for lane in LANES] == [1, 1, 1, 0]
        for order_id, answer in (("paid", Authorized()), ("waits", Pending()), ("voided", Voided())):
            provider.answer(order_id, answer)
        wait_until(
            lambda: numbers() == [(total + 1, count + 1) for total, count in before], LIMIT_SECONDS, "all are counted"
        )
    assert [value("calls_in_flight", lane=lane) for lane in LANES] == [0, 0, 0, 0]


def test_threads_may_begin_collect_and_forget_at_the_same_time(provider: Provider) -> None:
    """Each thread makes its own calls. Room is never exceeded, no outcome is lost, and all room is free at the end."""
    threads, rounds = 4, 30
    names = [
        f"{thread}-{number}-{index}" for thread in range(threads) for number in range(rounds) for index in range(5)
    ]
    provider.answers = {name: Authorized() for name in names if not name.endswith("-4")}
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def answer(name: str) -> None:
        provider.answer(name, Declined())

    def work(thread: int) -> None:
        for number in range(rounds):
            ids = [f"{thread}-{number}-{index}" for index in range(5)]
            batch = [request(order_id) for order_id in ids]
            calls.begin(batch, held=True)
            calls.wait(ids[:4], LIMIT_SECONDS)
            answer(ids[4])
            found = calls.wait(ids, LIMIT_SECONDS)
            calls.release(ids)
            ready = {ended.request.order_id for ended in calls.ended(1_000)}
            assert ready >= set(ids)
            with lock:
                outcomes.update(type(outcome).__name__ for outcome in found.values())
            calls.forget("authorize", ids)

    with started(provider, 100) as calls, ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, thread) for thread in range(threads)]:
            future.result(LIMIT_SECONDS)
        assert outcomes == {"Authorized": 4 * threads * rounds, "Declined": threads * rounds}
        assert [calls.room(lane) for lane in LANES] == [60, 20, 30, 20]
        assert calls.ended(10) == []
    assert sorted(provider.begun) == sorted(names)
