"""The provider in the process of the worker: its answers are constant, its rates are exact, and it takes its time."""

import asyncio
from decimal import Decimal

import pytest

from orderstream.domain.payment import Authorized, Charge, Declined, Voided
from orderstream.payment_worker.providers import simulated
from orderstream.payment_worker.providers.protocol import CallContext, ProviderUnavailableError
from orderstream.payment_worker.providers.simulated import SimulatedProvider
from tests.support.samples import AT

CALL = CallContext(1)


def _answers(provider: SimulatedProvider, orders: int) -> list[Authorized | Declined]:
    async def ask() -> list[Authorized | Declined]:
        charges = (Charge(str(number), Decimal(1), "USD", AT) for number in range(orders))
        return [await provider.authorize(charge, CALL) for charge in charges]

    return asyncio.run(ask())


def test_the_simulated_provider_repeats_its_answer() -> None:
    provider = SimulatedProvider(0.5, 0)
    answers = _answers(provider, 2_000)
    assert answers == _answers(provider, 2_000)
    assert 900 < answers.count(Authorized()) < 1_100


@pytest.mark.parametrize(("rate", "answer"), [(0.0, Declined()), (1.0, Authorized())])
def test_the_rates_0_and_1_of_the_simulated_provider_are_exact(rate: float, answer: Authorized | Declined) -> None:
    assert _answers(SimulatedProvider(rate, 0), 500) == [answer] * 500


def test_the_throw_rate_leaves_authorizations_unanswered_but_no_voids() -> None:
    provider = SimulatedProvider(1, 1)
    with pytest.raises(ProviderUnavailableError):
        _answers(provider, 1)
    assert asyncio.run(provider.void("1", CALL)) == Voided()


def test_each_call_takes_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    provider = SimulatedProvider(1, 1, latency_seconds=0.3)
    with pytest.raises(ProviderUnavailableError):
        _answers(provider, 1)
    asyncio.run(provider.void("1", CALL))
    assert waits == [0.3, 0.3]


def test_the_simulated_provider_remembers_a_limited_number_of_voided_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "VOIDED_MAX", 2)

    async def answers() -> list[object]:
        provider = SimulatedProvider(1, 0)
        for key in "abbc":
            await provider.void(key, CALL)
        charges = [Charge(key, Decimal(1), "EUR", AT) for key in "abc"]
        return [await provider.authorize(charge, CALL) for charge in charges]

    assert asyncio.run(answers()) == [Authorized(), Declined(), Declined()]
