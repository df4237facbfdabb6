"""The simulated provider in the process. tests/support/provider_contract.py checks what every provider must do."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from orderstream.domain.payment import Authorized, Charge, Declined
from orderstream.payment_worker.providers import simulated
from orderstream.payment_worker.providers.protocol import CallContext
from orderstream.payment_worker.providers.simulated import SimulatedProvider

CALL = CallContext(1.0)


def test_the_simulated_provider_remembers_a_limited_number_of_voided_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "VOIDED_MAX", 2)

    async def answers() -> list[object]:
        provider = SimulatedProvider(1.0, 0.0)
        for key in "abbc":
            await provider.void(key, CALL)
        charges = [Charge(key, Decimal(1), "EUR", datetime(2026, 1, 2, tzinfo=UTC)) for key in "abc"]
        return [await provider.authorize(charge, CALL) for charge in charges]

    assert asyncio.run(answers()) == [Authorized(), Declined(), Declined()]
