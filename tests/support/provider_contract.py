"""What every payment provider must do, as tests that any adapter can inherit (P2).

Make a class of tests from `ProviderContract`, or from `PendingContract` if the provider knows pending payments, and
define `open`. Every test opens a provider of its own, on an event loop of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
import uvloop
from msgspec import Struct

from orderstream.domain.payment import Authorized, Charge, Declined, NothingToVoid, Pending, Voided
from orderstream.payment_worker.providers.protocol import (
    CallContext,
    PaymentProvider,
    ProviderRefusedError,
    ProviderUnavailableError,
)

PLENTY = CallContext(30.0)
"""More time than any call of these tests needs."""
BRIEF = CallContext(0.2)
"""The time of a call that gets no answer."""
STUCK_SECONDS = 30.0
"""After this time a test fails, because a call did not end."""
AMOUNTS = [("0.01", "EUR"), ("12.50", "EUR"), ("999999999999.99", "USD"), ("1000", "JPY"), ("0.125", "KWD")]

ENDED = (Voided(), NothingToVoid())
"""The answers to a void. The worker treats both alike, so a provider may give either for a key without a charge."""

Fault = Callable[[], AbstractAsyncContextManager[None]]
"""Makes the provider fail until the block ends."""


class Account(Struct, frozen=True):
    """What the provider's books say about a key: how many charges it ever had, and the amount that is held now."""

    charges: int
    held: Decimal


class Subject(Struct, frozen=True, kw_only=True):
    """A provider under test, which authorizes every charge, and the ways to make it fail.

    `account` reads the provider's own books. It is None for a provider that has none.
    """

    provider: PaymentProvider
    hanging: Fault
    """Calls are never answered."""
    declining: Fault
    """New charges are declined."""
    refusals: Mapping[str, Fault]
    """Calls certainly do nothing."""
    failures: Mapping[str, Fault]
    """Calls fail, and the caller cannot know whether they did anything."""
    pending: Fault | None = None
    """New charges wait for the customer. Some time after the block they are authorized."""
    account: Callable[[str], Awaitable[Account]] | None = None

    async def authorize(self, key: str, amount: str = "12.50", currency: str = "EUR") -> object:
        """Authorize a charge with plenty of time."""
        return await self.provider.authorize(charge(key, amount, currency), PLENTY)

    async def void(self, key: str) -> object:
        """Void a key with plenty of time."""
        return await self.provider.void(key, PLENTY)

    async def assert_account(self, key: str, charges: int, held: str) -> None:
        """Check the provider's books, if it has them."""
        if self.account is not None:
            assert await self.account(key) == Account(charges, Decimal(held))

    async def assert_never_authorizes(self, key: str) -> None:
        """Check that the key holds nothing, and that no further call makes it hold something."""
        for _ in range(2):
            with suppress(ProviderUnavailableError):  # an honest answer, too; but a decline ends the order sooner
                assert await self.authorize(key) == Declined()
        if self.account is not None:
            assert (await self.account(key)).held == 0


def charge(key: str, amount: str = "12.50", currency: str = "EUR") -> Charge:
    """Return a charge."""
    return Charge(key, Decimal(amount), currency, datetime(2026, 1, 2, tzinfo=UTC))


def new_key() -> str:
    """Return a key that was never used."""
    return str(uuid4())


class ProviderContract:
    """The tests for any provider."""

    def open(self) -> AbstractAsyncContextManager[Subject]:
        """Start the provider's other side if it has one, make the adapter, and undo both at the end."""
        raise NotImplementedError

    def run(self, check: Callable[[Subject], Coroutine[Any, Any, None]]) -> None:
        """Run a check on a provider of its own, on the kind of event loop that the worker uses."""

        async def main() -> None:
            async with asyncio.timeout(STUCK_SECONDS), self.open() as subject:
                try:
                    await check(subject)
                finally:
                    await subject.provider.close()

        uvloop.run(main())

    def test_a_provider_that_was_never_called_can_be_closed(self) -> None:
        async def check(_subject: Subject) -> None:
            """Only `run` acts."""

        self.run(check)

    def test_a_repeated_call_gets_the_same_answer_and_holds_once(self) -> None:
        async def check(subject: Subject) -> None:
            key = new_key()
            assert [await subject.authorize(key) for _ in range(3)] == [Authorized()] * 3
            await subject.assert_account(key, 1, "12.50")

        self.run(check)

    def test_calls_at_the_same_time_with_one_key_hold_once(self) -> None:
        async def check(subject: Subject) -> None:
            key = new_key()
            answers = await asyncio.gather(*(subject.authorize(key) for _ in range(20)))
            assert answers == [Authorized()] * 20
            await subject.assert_account(key, 1, "12.50")

        self.run(check)

    def test_amounts_are_exact(self) -> None:
        async def check(subject: Subject) -> None:
            for amount, currency in AMOUNTS:
                key = new_key()
                assert await subject.authorize(key, amount, currency) == Authorized()
                await subject.assert_account(key, 1, amount)

        self.run(check)

    def test_keys_are_independent(self) -> None:
        async def check(subject: Subject) -> None:
            keys = [new_key() for _ in range(20)]
            assert await asyncio.gather(*(subject.authorize(key) for key in keys)) == [Authorized()] * 20
            assert await subject.void(keys[0]) == Voided()
            assert await asyncio.gather(*(subject.authorize(key) for key in keys[1:])) == [Authorized()] * 19
            for key in keys[1:]:
                await subject.assert_account(key, 1, "12.50")

        self.run(check)

    def test_a_decline_is_final_and_holds_nothing(self) -> None:
        async def check(subject: Subject) -> None:
            key = new_key()
            async with subject.declining():
                assert [await subject.authorize(key) for _ in range(2)] == [Declined()] * 2
            await subject.assert_account(key, 0, "0")
            assert await subject.void(key) in ENDED
            await subject.assert_never_authorizes(key)

        self.run(check)

    def test_a_void_releases_the_amount_and_the_key_holds_nothing_again(self) -> None:
        async def check(subject: Subject) -> None:
            key = new_key()
            assert await subject.authorize(key) == Authorized()
            assert await subject.void(key) == Voided()
            await subject.assert_account(key, 1, "0")
            await subject.assert_never_authorizes(key)

        self.run(check)

    def test_a_key_that_was_voided_before_its_use_holds_nothing(self) -> None:
        async def check(subject: Subject) -> None:
            key = new_key()
            assert await subject.void(key) in ENDED
            await subject.assert_never_authorizes(key)

        self.run(check)

    def test_a_repeated_void_gets_the_same_answer(self) -> None:
        async def check(subject: Subject) -> None:
            used, unused = new_key(), new_key()
            assert await subject.authorize(used) == Authorized()
            assert [await subject.void(used) for _ in range(3)] == [Voided()] * 3
            first = await subject.void(unused)
            assert first in ENDED
            assert await asyncio.gather(*(subject.void(unused) for _ in range(10))) == [first] * 10

        self.run(check)

    def test_a_void_wins_against_a_call_that_is_under_way(self) -> None:
        async def check(subject: Subject) -> None:
            keys = [new_key() for _ in range(20)]
            calls = [call(key) for key in keys for call in (subject.authorize, subject.void)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            for key, authorization, voided in zip(keys, answers[::2], answers[1::2], strict=True):
                assert authorization in (Authorized(), Declined()) or isinstance(
                    authorization, ProviderUnavailableError
                )
                assert voided in (Voided(), NothingToVoid())
                assert await subject.void(key) == voided
                await subject.assert_never_authorizes(key)

        self.run(check)

    def test_a_call_without_an_answer_ends_in_time_and_can_be_repeated(self) -> None:
        async def check(subject: Subject) -> None:
            key = new_key()
            async with subject.hanging():
                for call in (subject.provider.authorize(charge(key), BRIEF), subject.provider.void(new_key(), BRIEF)):
                    with pytest.raises((ProviderUnavailableError, ProviderRefusedError, TimeoutError)):
                        await asyncio.wait_for(call, BRIEF.timeout_seconds)  # as the worker does
            assert await subject.authorize(key) == Authorized()
            await subject.assert_account(key, 1, "12.50")

        self.run(check)

    def test_a_cancelled_call_ends_and_can_be_repeated(self) -> None:
        async def check(subject: Subject) -> None:
            key = new_key()
            async with subject.hanging():
                call = asyncio.ensure_future(subject.authorize(key))
                await asyncio.wait([call], timeout=BRIEF.timeout_seconds)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            assert await subject.authorize(key) == Authorized()
            await subject.assert_account(key, 1, "12.50")

        self.run(check)

    def test_a_refused_call_holds_and_voids_nothing(self) -> None:
        async def check(subject: Subject) -> None:
            for refusing in subject.refusals.values():
                key, held = new_key(), new_key()
                assert await subject.authorize(held) == Authorized()
                async with refusing():
                    for call in (subject.authorize(key), subject.void(held)):
                        with pytest.raises(ProviderRefusedError) as caught:
                            await call
                        assert caught.value.retry_after_seconds >= 0
                await subject.assert_account(held, 1, "12.50")
                assert await subject.void(key) in ENDED
                assert await subject.void(held) == Voided()

        self.run(check)

    def test_a_failed_call_raises_an_error_of_the_protocol_and_can_be_repeated(self) -> None:
        async def check(subject: Subject) -> None:
            assert subject.failures
            for failing in subject.failures.values():
                key, held = new_key(), new_key()
                assert await subject.authorize(held) == Authorized()
                async with failing():
                    with pytest.raises(ProviderUnavailableError):
                        await subject.authorize(key)
                    with suppress(ProviderUnavailableError):
                        assert await subject.void(held) == Voided()
                assert await subject.authorize(key) == Authorized()
                assert await subject.void(held) == Voided()
                await subject.assert_account(key, 1, "12.50")
                await subject.assert_account(held, 1, "0")

        self.run(check)


class PendingContract(ProviderContract):
    """The tests for a provider that knows pending payments, too."""

    def test_a_pending_payment_is_authorized_later_by_the_same_call(self) -> None:
        async def check(subject: Subject) -> None:
            key = new_key()
            assert subject.pending is not None
            async with subject.pending():
                assert [await subject.authorize(key) for _ in range(2)] == [Pending()] * 2
                await subject.assert_account(key, 0, "0")
            answer: object = Pending()
            while answer == Pending():  # `run` limits the time
                answer = await subject.authorize(key)
            assert answer == Authorized()
            await subject.assert_account(key, 1, "12.50")

        self.run(check)

    def test_a_pending_payment_can_be_voided(self) -> None:
        async def check(subject: Subject) -> None:
            key = new_key()
            assert subject.pending is not None
            async with subject.pending():
                assert await subject.authorize(key) == Pending()
                assert await subject.void(key) in ENDED
            await subject.assert_never_authorizes(key)

        self.run(check)
