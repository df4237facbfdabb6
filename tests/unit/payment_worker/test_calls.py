"""Calls to the provider: their number, their room, their outcomes and their end (P2)."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, cast

import pytest

from orderstream.domain.payment import (
    Authorized,
    Charge,
    Declined,
    InFlight,
    NothingToVoid,
    Pending,
    Refused,
    Unanswered,
    Voided,
)
from orderstream.payment_worker import call_loop, call_report
from orderstream.payment_worker import calls as calls_module
from orderstream.payment_worker.breaker import FAILURES_MAX, OPEN_MAX_SECONDS, RETRY_AFTER_MAX_SECONDS
from orderstream.payment_worker.call import Ended, Request
from orderstream.payment_worker.calls import HELD_SECONDS, STUCK_SECONDS, ProviderCalls
from orderstream.payment_worker.lanes import LANES, Lane
from orderstream.payment_worker.providers.protocol import (
    CallContext,
    ProviderRefusedError,
    ProviderUnavailableError,
)
from orderstream.telemetry import metrics
from orderstream.telemetry.tracing import NO_TRACE, RecordedSpan, TraceContext, Tracer
from tests.support.waiting import wait_until

LIMIT_SECONDS = 10.0
TRACER = Tracer(None, 0)
SAMPLED = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Provider:
    """Answers a call as `answers` says, or at the time when the test says so."""

    def __init__(self) -> None:
        self.answers: dict[str, object] = {}
        """The answers that are given at once, by order id. An exception is raised."""
        self.running: dict[str, asyncio.Future[Any]] = {}
        self.begun: list[str] = []
        self.contexts: list[CallContext] = []
        self.most = 0
        self.ignores_cancellation = False
        self.is_closed = False

    async def authorize(self, charge: Charge, call: CallContext) -> Authorized | Declined | Pending:
        self.contexts.append(call)
        return cast("Authorized | Declined | Pending", await self._answer(charge.order_id))

    async def void(self, order_id: str, call: CallContext) -> Voided | NothingToVoid:
        self.contexts.append(call)
        return cast("Voided | NothingToVoid", await self._answer(order_id))

    async def close(self) -> None:
        self.is_closed = True

    async def _answer(self, order_id: str) -> object:
        self.begun.append(order_id)
        if order_id in self.answers:
            answer = self.answers[order_id]
            if isinstance(answer, BaseException):
                raise answer
            return answer
        future = asyncio.get_running_loop().create_future()
        self.running[order_id] = future
        self.most = max(self.most, len(self.running))
        try:
            while True:
                try:
                    return await asyncio.shield(future)
                except asyncio.CancelledError:
                    if not self.ignores_cancellation or future.cancelled():
                        raise
        finally:
            del self.running[order_id]

    def answer(self, order_id: str, answer: object) -> None:
        """Let a running call return `answer`."""
        wait_until(lambda: order_id in self.running, LIMIT_SECONDS, f"the call for {order_id} runs")
        future = self.running[order_id]
        future.get_loop().call_soon_threadsafe(future.set_result, answer)

    def cancel_all(self) -> None:
        """End the calls that ignore cancellation."""
        for future in list(self.running.values()):
            future.get_loop().call_soon_threadsafe(future.cancel)


def request(
    order_id: str, lane: Lane = "new", attempts: int = 0, subject: object = None, trace: TraceContext = NO_TRACE
) -> Request:
    accepted_at = datetime(2026, 1, 1, tzinfo=UTC)
    charge = None if lane.startswith("void") else Charge(order_id, Decimal("12.50"), "EUR", accepted_at)
    return Request(order_id, lane, attempts, charge, trace, subject)


def requests(name: str, number: int, lane: Lane = "new") -> list[Request]:
    return [request(f"{name}-{index}", lane) for index in range(number)]


@contextmanager
def started(
    provider: Provider,
    concurrency: int = 100,
    timeout_seconds: float = 10.0,
    clock: Callable[[], float] | None = None,
    tracer: Tracer = TRACER,
) -> Iterator[ProviderCalls]:
    """Run calls until the block ends."""
    calls = ProviderCalls(provider, concurrency, timeout_seconds, tracer, clock or time.monotonic)
    calls.start()
    try:
        yield calls
    finally:
        calls.close(0.1)


def collected(calls: ProviderCalls, number: int) -> dict[str, object]:
    """Wait for `number` ended calls, and return their outcomes by order id."""
    wait_until(lambda: len(calls.ended(1_000)) >= number, LIMIT_SECONDS, f"{number} calls have ended")
    return {ended.request.order_id: ended.outcome for ended in calls.ended(1_000)}


def begun(provider: Provider, number: int) -> None:
    wait_until(lambda: len(provider.begun) >= number, LIMIT_SECONDS, f"{number} calls have begun")


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Return the log lines of the calls: event and fields."""
    found: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def __getattr__(self, _level: str) -> Callable[..., None]:
            return lambda event, **fields: found.append((event, fields))

    for module in (call_report, calls_module, call_loop):
        monkeypatch.setattr(module, "log", Log())
    return found


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
    assert authorize.attributes == {"order.id": "paid", "provider.outcome": "authorized", "attempt": 1}
    assert (void.name, void.error) == ("void payment", "ProviderUnavailableError('reset')")
    assert void.attributes == {"order.id": "void", "provider.outcome": "unanswered", "attempt": 3}
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
