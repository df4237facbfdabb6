"""payment-worker's handler and timers over a scripted provider, for tests that call them directly."""

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal

from msgspec.structs import replace

from orderstream.domain.payment import Authorized, Charge, Declined, NothingToVoid, Pending, Voided
from orderstream.payment_worker.attempts import Attempts, Schedule
from orderstream.payment_worker.calls import ProviderCalls
from orderstream.payment_worker.handler import PaymentHandler
from orderstream.payment_worker.providers.protocol import CallContext, PaymentProvider, ProviderUnavailableError
from orderstream.payment_worker.webhook import DecidedKeys
from orderstream.postgres.connect import Connection
from orderstream.telemetry.tracing import Tracer
from tests.support.waiting import wait_until

MAX_ATTEMPTS = 3
KEY_LIFETIME_SECONDS = 3_600.0
PENDING_LIMIT_SECONDS = 1_800.0
CALL_TIMEOUT_SECONDS = 10.0
INLINE_SECONDS = 5.0
"""A batch of a test waits for its answers, unless the test says otherwise."""
SCHEDULE = Schedule(
    max_attempts=MAX_ATTEMPTS,
    retry_base=0.2,
    retry_max=30,
    key_lifetime=KEY_LIFETIME_SECONDS,
    pending_limit=PENDING_LIMIT_SECONDS,
    call_timeout=CALL_TIMEOUT_SECONDS,
)
Answer = Authorized | Declined | Pending | None


async def _at_once() -> None:
    """Take no time."""


class ScriptedProvider:
    """Answers as the test says. None is no answer. `charges` and `voided` record the calls.

    Each call awaits `meanwhile` before it answers.
    """

    def __init__(self, answer: Answer = None, void_answer: Voided | NothingToVoid | None = None) -> None:
        self.answer: Answer = answer
        self.void_answer: Voided | NothingToVoid | None = void_answer
        self.charges: list[Charge] = []
        self.voided: list[str] = []
        self.meanwhile: Callable[[], Awaitable[None]] = _at_once

    def charge_values(self) -> list[tuple[str, Decimal, str]]:
        """Return the order id, the amount and the currency of each charge, in the order of the calls."""
        return [(charge.order_id, charge.amount, charge.currency) for charge in self.charges]

    async def authorize(self, charge: Charge, call: CallContext) -> Authorized | Declined | Pending:
        """Record the charge and return the scripted answer."""
        assert 0 < call.timeout_seconds <= CALL_TIMEOUT_SECONDS
        self.charges.append(charge)
        await self.meanwhile()
        if self.answer is None:
            raise ProviderUnavailableError("no answer")
        return self.answer

    async def void(self, order_id: str, call: CallContext) -> Voided | NothingToVoid:
        """Record the void and return the scripted answer."""
        assert 0 < call.timeout_seconds <= CALL_TIMEOUT_SECONDS
        self.voided.append(order_id)
        await self.meanwhile()
        if self.void_answer is None:
            raise ProviderUnavailableError("no answer")
        return self.void_answer

    async def close(self) -> None:
        """There is nothing to close."""


class Payments:
    """The handler of one payment-worker, its timers, and its calls."""

    def __init__(self, provider: PaymentProvider, concurrency: int, inline_seconds: float, schedule: Schedule) -> None:
        self.wake = threading.Event()
        self.decided = DecidedKeys(self.wake)
        self.calls = ProviderCalls(provider, concurrency, CALL_TIMEOUT_SECONDS, Tracer(None, 0))
        self.calls.on_ended = self.wake.set
        self.attempts = Attempts(self.calls, schedule, self.decided, wake=self.wake.set)
        self.handler = PaymentHandler(self.calls, self.attempts, schedule, inline_seconds, self.wake)

    def run_timers(self, connection: Connection) -> bool:
        """Begin the attempts that are due, wait until no call runs, and record the answers.

        Return whether more attempts may be due.
        """
        more = self.attempts.begin(connection)
        wait_until(lambda: not any(self.calls.state().in_flight.values()), 20, "no call is under way")
        while self.attempts.record(connection):
            continue
        return more


@contextmanager
def payments(
    provider: PaymentProvider,
    *,
    concurrency: int = 1_000,
    inline_seconds: float = INLINE_SECONDS,
    key_lifetime_seconds: float = KEY_LIFETIME_SECONDS,
) -> Iterator[Payments]:
    """Build the payment-worker of a test, and end its calls afterwards."""
    schedule = replace(SCHEDULE, key_lifetime=key_lifetime_seconds)
    built = Payments(provider, concurrency, inline_seconds, schedule)
    built.calls.start()
    try:
        yield built
    finally:
        built.calls.close(5)


_opened = ExitStack()


def payment_worker(
    provider: PaymentProvider, *, concurrency: int = 1_000, inline_seconds: float = INLINE_SECONDS
) -> Payments:
    """Build a payment-worker that lasts until the test ends (`close_all`)."""
    return _opened.enter_context(payments(provider, concurrency=concurrency, inline_seconds=inline_seconds))


def close_all() -> None:
    """End the calls of the payment-workers that `payment_worker` has built."""
    _opened.close()
