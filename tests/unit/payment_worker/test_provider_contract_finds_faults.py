"""The tests that every payment provider must pass find the faults that an adapter can have."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from orderstream.domain.payment import Authorized, Charge, Declined, NothingToVoid, Voided
from orderstream.payment_worker.providers.protocol import CallContext, ProviderRefusedError, ProviderUnavailableError
from tests.support.provider_contract import Account, Fault, ProviderContract, Subject


class Provider:
    """A provider in memory. `fault` names what it does wrong, and `mood` what its company does."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.mood = ""
        self.accounts: dict[str, Account] = {}
        self.declined: set[str] = set()
        self.voided: dict[str, Voided | NothingToVoid] = {}

    async def authorize(self, charge: Charge, call: CallContext) -> Authorized | Declined:
        del call
        key = charge.order_id
        await self._answer(key, charge.amount)
        if self.mood == "declining":
            self.declined.add(key)
        if key in self.voided or (key in self.declined and self.fault != "charges after a decline"):
            return Declined()
        account = self.accounts.get(key, Account(0, Decimal(0)))
        if self.fault == "two charges at the same time":
            await asyncio.sleep(0)
        if account.charges == 0 or self.fault == "charges each call":
            amount = round(charge.amount, 2) if self.fault == "rounds" else charge.amount
            self.accounts[key] = Account(self.accounts.get(key, account).charges + 1, amount)
        return Authorized()

    async def void(self, order_id: str, call: CallContext) -> Voided | NothingToVoid:
        del call
        await self._answer(order_id, Decimal(0))
        account = self.accounts.get(order_id)
        if order_id in self.voided and self.fault != "another answer to the second void":
            return self.voided[order_id]
        if account is None or account.held == 0:
            if self.fault != "forgets a void without a charge":
                self.voided[order_id] = NothingToVoid()
            return NothingToVoid()
        self.accounts[order_id] = Account(account.charges, Decimal(0))
        if self.fault == "charges after a void":
            del self.accounts[order_id]
        else:
            self.voided[order_id] = Voided()
        return Voided()

    async def close(self) -> None:
        if self.fault == "cannot be closed":
            raise RuntimeError("no connection to close")

    async def _answer(self, key: str, amount: Decimal) -> None:
        match self.mood:
            case "hanging":
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    if self.fault != "ignores that it is cancelled":
                        raise
            case "refusing":
                if self.fault == "acts and says that it did not":
                    self.accounts[key] = Account(2, amount)
                raise ProviderRefusedError("too many calls")
            case "failing":
                raise ValueError("bug") if self.fault == "another error" else ProviderUnavailableError("no answer")


class Contract(ProviderContract):
    """The contract for a provider with a fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Subject]:
        provider = Provider(self.fault)

        def mood(name: str) -> Fault:
            @asynccontextmanager
            async def change() -> AsyncIterator[None]:
                provider.mood = name
                try:
                    yield
                finally:
                    provider.mood = ""

            return change

        async def account(key: str) -> Account:
            return provider.accounts.get(key, Account(0, Decimal(0)))

        yield Subject(
            provider=provider,
            hanging=mood("hanging"),
            declining=mood("declining"),
            refusals={"refusing": mood("refusing")},
            failures={"failing": mood("failing")},
            account=account,
        )


TESTS = sorted(name for name in dir(ProviderContract) if name.startswith("test_"))
FAULTS = {
    "charges each call": "test_a_repeated_call_gets_the_same_answer_and_holds_once",
    "two charges at the same time": "test_calls_at_the_same_time_with_one_key_hold_once",
    "rounds": "test_amounts_are_exact",
    "charges after a decline": "test_a_decline_is_final_and_holds_nothing",
    "charges after a void": "test_a_void_releases_the_amount_and_the_key_holds_nothing_again",
    "forgets a void without a charge": "test_a_key_that_was_voided_before_its_use_holds_nothing",
    "another answer to the second void": "test_a_repeated_void_gets_the_same_answer",
    "ignores that it is cancelled": "test_a_cancelled_call_ends_and_can_be_repeated",
    "acts and says that it did not": "test_a_refused_call_holds_and_voids_nothing",
    "another error": "test_a_failed_call_raises_an_error_of_the_protocol_and_can_be_repeated",
    "cannot be closed": "test_a_provider_that_was_never_called_can_be_closed",
}


def outcome(fault: str, test: str) -> Any:
    """Run a test of the contract on a provider with a fault, and return the error that it ends with, or None."""
    try:
        getattr(Contract(fault), test)()
    except (AssertionError, ValueError, RuntimeError, pytest.fail.Exception) as error:
        return error
    return None


@pytest.mark.parametrize("test", TESTS)
def test_a_correct_provider_passes(test: str) -> None:
    assert outcome("none", test) is None


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str) -> None:
    assert outcome(fault, FAULTS[fault]) is not None
