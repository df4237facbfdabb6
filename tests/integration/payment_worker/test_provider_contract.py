"""The providers of OrderStream keep the contract: the simulated one, and the HTTP one against the payment simulator."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from orderstream.payment_worker.providers.http import HttpPaymentProvider
from orderstream.payment_worker.providers.simulated import SimulatedProvider
from tests.support.contracts import provider_violations
from tests.support.provider_contract import Account, Fault, PendingContract, ProviderContract, Subject
from tests.support.simulators import Simulator, simulator


class TestSimulatedProvider(ProviderContract):
    """The provider in the process of the worker. It has no books."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Subject]:
        provider = SimulatedProvider(1.0, 0.0)

        def setting(name: str, value: float) -> Fault:
            @asynccontextmanager
            async def fault() -> AsyncIterator[None]:
                before = getattr(provider, name)
                setattr(provider, name, value)
                yield
                setattr(provider, name, before)

            return fault

        yield Subject(
            provider=provider,
            hanging=setting("_latency_seconds", 600.0),
            declining=setting("_success_rate", 0.0),
            refusals={},
            failures={"no answer": setting("_throw_rate", 1.0)},
        )


@pytest.fixture(scope="class")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder: Path = tmp_path_factory.mktemp("simulator")
    with simulator(folder) as started:
        request.cls.simulator = started
        yield


@pytest.mark.usefixtures("running")
class TestHttpProviderWithTheSimulator(PendingContract):
    """The HTTP client against the simulator, whose ledger has the last word."""

    simulator: Simulator

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Subject]:
        async with httpx.AsyncClient(base_url=self.simulator.url) as reader:

            async def account(key: str) -> Account:
                answer = await reader.get(f"/v1/payments/{key}")
                assert provider_violations("Payment", answer.json()) == []
                return Account(answer.json()["charges"], Decimal(answer.json()["held"]))

            yield Subject(
                provider=HttpPaymentProvider(self.simulator.url, 100),
                hanging=self._fault(hangRate=1),
                declining=self._fault(declineRate=1),
                refusals={"429": self._fault(refuseRate=1), "down": self._fault(down=True)},
                failures={
                    "500": self._fault(errorBeforeRate=1),
                    "500 after the charge": self._fault(errorAfterRate=1),
                    "a lost answer": self._fault(dropAfterRate=1),
                },
                pending=self._fault(pendingRate=1, pendingSeconds=0.3),
                account=account,
            )

    def _fault(self, **members: float) -> Fault:
        harmless = {name: value * 0 if name != "down" else False for name, value in members.items()}

        @asynccontextmanager
        async def fault() -> AsyncIterator[None]:
            self.simulator.change_faults(**members)
            try:
                yield
            finally:
                self.simulator.change_faults(**harmless)

        return fault
