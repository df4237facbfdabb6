"""A provider that a test controls, and ProviderCalls over it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

from orderstream.domain.payment import (
    Authorized,
    Charge,
    Declined,
    NothingToVoid,
    Pending,
    Voided,
)
from orderstream.payment_worker.call import Request
from orderstream.payment_worker.calls import ProviderCalls
from orderstream.payment_worker.lanes import Lane
from orderstream.payment_worker.providers.protocol import (
    CallContext,
)
from orderstream.telemetry.tracing import NO_TRACE, TraceContext, Tracer
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
        if order_id in self.answers:
            self.begun.append(order_id)
            answer = self.answers[order_id]
            if isinstance(answer, BaseException):
                raise answer
            return answer
        future = asyncio.get_running_loop().create_future()
        self.running[order_id] = future
        self.most = max(self.most, len(self.running))
        # Last: a test that waits until a call has begun may then look at the call.
        self.begun.append(order_id)
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
    """Run calls until the block ends. Then their thread has ended, and has logged and counted everything."""
    calls = ProviderCalls(provider, concurrency, timeout_seconds, tracer, clock or time.monotonic)
    calls.start()
    try:
        yield calls
    finally:
        calls.close(0.1)
        wait_until(lambda: not calls._loop._thread.is_alive(), LIMIT_SECONDS, "the thread of the calls has ended")


def collected(calls: ProviderCalls, number: int) -> dict[str, object]:
    """Wait for `number` ended calls, and return their outcomes by order id."""
    wait_until(lambda: len(calls.ended(1_000)) >= number, LIMIT_SECONDS, f"{number} calls have ended")
    return {ended.request.order_id: ended.outcome for ended in calls.ended(1_000)}


def begun(provider: Provider, number: int) -> None:
    wait_until(lambda: len(provider.begun) >= number, LIMIT_SECONDS, f"{number} calls have begun")
