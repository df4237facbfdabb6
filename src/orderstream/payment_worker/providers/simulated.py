"""A payment provider in the process of the worker, for development and tests. It holds no money."""

import asyncio
import random
from hashlib import blake2b

from orderstream.domain.payment import Authorized, Charge, Declined, NothingToVoid, Voided
from orderstream.payment_worker.providers.protocol import CallContext, ProviderUnavailableError

VOIDED_MAX = 10_000
"""Voided keys that the provider remembers, the newest ones. It would authorize older ones again. It holds no money."""


class SimulatedProvider:
    """Decides by a hash of the order id, so that a retry gets the same answer. It declines a key that it has voided.

    `success_rate` is the share of orders that it authorizes. `throw_rate` is the share of attempts to authorize that it
    does not answer. It takes `latency_seconds` for each call.
    """

    def __init__(self, success_rate: float, throw_rate: float, latency_seconds: float = 0.0) -> None:
        self._success_rate = success_rate
        self._throw_rate = throw_rate
        self._latency_seconds = latency_seconds
        self._voided: dict[str, None] = {}

    async def authorize(self, charge: Charge, call: CallContext) -> Authorized | Declined:
        """Return the outcome, or raise ProviderUnavailableError."""
        del call
        await self._take_time()
        if self._throw_rate and random.random() < self._throw_rate:  # noqa: S311 - a simulated fault, not a secret
            raise ProviderUnavailableError("simulated fault")
        if charge.order_id in self._voided:
            return Declined()
        return Authorized() if draw(charge.order_id) < self._success_rate else Declined()

    async def void(self, order_id: str, call: CallContext) -> Voided | NothingToVoid:
        """Return the outcome."""
        del call
        await self._take_time()
        self._voided[order_id] = None
        if len(self._voided) > VOIDED_MAX:
            del self._voided[next(iter(self._voided))]
        return Voided() if draw(order_id) < self._success_rate else NothingToVoid()

    async def close(self) -> None:
        """There is nothing to close."""

    async def _take_time(self) -> None:
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)


def draw(order_id: str) -> float:
    """Return a number in [0, 1) that is constant for an order and evenly distributed over orders."""
    return int.from_bytes(blake2b(order_id.encode(), digest_size=7).digest(), "big") / 2**56
