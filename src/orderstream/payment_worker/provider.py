"""The interface of a payment provider, and a simulated provider that implements it."""

import random
from hashlib import blake2b
from typing import Protocol

from orderstream.domain.payment import Authorized, Charge, Declined, NothingToVoid, Pending, Voided


class ProviderUnavailableError(Exception):
    """The provider gave no answer, so it is unknown whether it charged. Retry with the same key."""


class PaymentProvider(Protocol):
    """The interface of an adapter. Several threads call it. The order id is the idempotency key."""

    def authorize(self, charge: Charge, timeout_seconds: float) -> Authorized | Declined | Pending:
        """Hold the amount, or return the outcome of the first call with this key.

        Raises ProviderUnavailableError if no answer comes within `timeout_seconds`.
        """
        ...

    def void(self, order_id: str, timeout_seconds: float) -> Voided | NothingToVoid:
        """Undo the charge of a key. Return only when the key can never carry a charge again.

        Raises ProviderUnavailableError if no answer comes within `timeout_seconds`.
        """
        ...


class SimulatedProvider:
    """Decides by a hash of the order id, so that a retry gets the same answer.

    `success_rate` is the share of orders authorized; `throw_rate` the share of attempts to authorize without an answer.
    """

    def __init__(self, success_rate: float, throw_rate: float) -> None:
        self._success_rate = success_rate
        self._throw_rate = throw_rate

    def authorize(self, charge: Charge, timeout_seconds: float) -> Authorized | Declined:
        """Return the outcome at once, or raise ProviderUnavailableError at once."""
        del timeout_seconds
        if self._throw_rate and random.random() < self._throw_rate:  # noqa: S311 - a simulated fault, not a secret
            raise ProviderUnavailableError("simulated fault")
        return Authorized() if draw(charge.order_id) < self._success_rate else Declined()

    def void(self, order_id: str, timeout_seconds: float) -> Voided | NothingToVoid:
        """Return the outcome at once."""
        del timeout_seconds
        return Voided() if draw(order_id) < self._success_rate else NothingToVoid()


def draw(order_id: str) -> float:
    """Return a number in [0, 1) that is constant for an order and evenly distributed over orders."""
    return int.from_bytes(blake2b(order_id.encode(), digest_size=7).digest(), "big") / 2**56
