"""Calls to the provider: their number, their room, their outcomes and their end (P2)."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from orderstream.domain.payment import Authorized, Charge, Declined, InFlight, NothingToVoid, Pending, Voided
from orderstream.payment_worker.call import Ended, Request
from orderstream.payment_worker.calls import ProviderCalls
from orderstream.payment_worker.lanes import Lane
from orderstream.payment_worker.providers.protocol import CallContext
from orderstream.telemetry.tracing import NO_TRACE, Tracer
from tests.support.waiting import wait_until

LIMIT_SECONDS = 10.0
TRACER = Tracer(None, 0)


class Provider:
    """Answers a call when the test says so. Calls to an order id in `instant` are answered at once."""

    def __init__(self) -> None:
        self.instant: set[str] = set()
        self.running: dict[str, asyncio.Future[object]] = {}
        self.begun: list[str] = []
        self.most = 0
        self.is_closed = False

    async def authorize(self, charge: Charge, _call: CallContext) -> Authorized | Declined | Pending:
        return await self._answer(charge.order_id, Authorized())  # type: ignore[return-value]

    async def void(self, order_id: str, _call: CallContext) -> Voided | NothingToVoid:
        return await self._answer(order_id, Voided())  # type: ignore[return-value]

    async def close(self) -> None:
        self.is_closed = True

    async def _answer(self, order_id: str, at_once: object) -> object:
        self.begun.append(order_id)
        if order_id in self.instant:
            return at_once
        future = asyncio.get_running_loop().create_future()
        self.running[order_id] = future
        self.most = max(self.most, len(self.running))
        try:
            return await future
        finally:
            del self.running[order_id]

    def answer(self, order_id: str, answer: object) -> None:
        """Let a running call return `answer`, or raise it if it is an exception."""
        wait_until(lambda: order_id in self.running, LIMIT_SECONDS, f"the call for {order_id} runs")
        future = self.running[order_id]
        loop = future.get_loop()
        if isinstance(answer, Exception):
            loop.call_soon_threadsafe(future.set_exception, answer)
        else:
            loop.call_soon_threadsafe(future.set_result, answer)


def request(order_id: str, lane: Lane = "new", attempts: int = 0, subject: object = None) -> Request:
    charge = (
        None if lane.startswith("void") else Charge(order_id, Decimal("12.50"), "EUR", datetime(2026, 1, 1, tzinfo=UTC))
    )
    return Request(order_id, lane, attempts, charge, NO_TRACE, subject)


@contextmanager
def started(provider: Provider, concurrency: int = 100, timeout_seconds: float = 10.0) -> Iterator[ProviderCalls]:
    calls = ProviderCalls(provider, concurrency, timeout_seconds, TRACER)
    calls.start()
    try:
        yield calls
    finally:
        calls.close(1.0)


def collected(calls: ProviderCalls, number: int) -> list[Ended]:
    """Wait for `number` ended calls, and return them."""
    wait_until(lambda: len(calls.ended(1_000)) >= number, LIMIT_SECONDS, f"{number} calls have ended")
    return calls.ended(1_000)


@pytest.fixture
def provider() -> Provider:
    return Provider()


def test_calls_answered_at_once_are_returned_within_the_time_of_the_batch(provider: Provider) -> None:
    ids = [f"order-{number}" for number in range(50)]
    provider.instant.update(ids)
    with started(provider) as calls:
        calls.begin([request(order_id) for order_id in ids], held=True)
        assert calls.wait([*ids, "unknown"], 5) == dict.fromkeys(ids, Authorized())
        assert calls.ended(100) == []
        calls.forget("authorize", ids)
        assert calls.room("new") == 60


def test_no_more_calls_begin_than_there_is_room_for(provider: Provider) -> None:
    with started(provider, 10) as calls:
        assert calls.room("new") == 6
        calls.begin([request(f"order-{number}") for number in range(20)], held=True)
        found = calls.wait([f"order-{number}" for number in range(20)], 0.001)
        assert found == {f"order-{number}": InFlight() for number in range(6)}
        assert calls.room("new") == 0
        assert provider.most == 6


def test_a_slow_call_is_returned_after_its_release_until_it_is_forgotten(provider: Provider) -> None:
    woken = threading.Event()
    with started(provider) as calls:
        calls.on_ended = woken.set
        slow = request("slow", subject="row")
        calls.begin([slow], held=True)
        assert calls.wait(["slow"], 0.001) == {"slow": InFlight()}
        provider.answer("slow", Declined())
        assert calls.wait(["slow"], 5) == {"slow": Declined()}
        assert not woken.is_set()
        calls.release(["slow"])
        assert woken.is_set()
        assert calls.ended(10) == calls.ended(10) == [Ended(slow, Declined())]
        calls.forget("authorize", ["slow"])
        assert calls.ended(10) == []
