"""The payment provider, as OrderStream sees it, and the simulated one that runs until there is a real one."""

import random
from hashlib import blake2b
from typing import Protocol

from orderstream.domain.payment import Authorized, Charge, Declined, NothingToVoid, Pending, Voided


class ProviderUnavailableError(Exception):
    """The provider gave no answer: whether it charged is unknown, and must be asked again with the same key."""


class PaymentProvider(Protocol):
    """What a real provider's adapter implements. Called from several threads. The order id is the idempotency key."""

    def authorize(self, charge: Charge, timeout_seconds: float) -> Authorized | Declined | Pending:
        """Hold the amount, or say what was decided the first time this key was used.

        Raises ProviderUnavailableError when no answer came within `timeout_seconds`.
        """
        ...

    def void(self, order_id: str, timeout_seconds: float) -> Voided | NothingToVoid:
        """Undo the charge of a key. Returns only when that key can never carry a charge again.

        Raises ProviderUnavailableError when no answer came within `timeout_seconds`.
        """
        ...


class SimulatedProvider:
    """Decides by a hash of the order id, so that asking again never changes the answer.

    `success_rate` is the share of orders authorized; `throw_rate` the share of authorization attempts left unanswered.
    """

    def __init__(self, success_rate: float, throw_rate: float) -> None:
        self._success_rate = success_rate
        self._throw_rate = throw_rate

    def authorize(self, charge: Charge, timeout_seconds: float) -> Authorized | Declined:
        """Answer at once, or raise ProviderUnavailableError at once."""
        del timeout_seconds
        if self._throw_rate and random.random() < self._throw_rate:  # noqa: S311 - a simulated fault, not a secret
            raise ProviderUnavailableError("simulated fault")
        return Authorized() if draw(charge.order_id) < self._success_rate else Declined()

    def void(self, order_id: str, timeout_seconds: float) -> Voided | NothingToVoid:
        """Answer at once."""
        del timeout_seconds
        return Voided() if draw(order_id) < self._success_rate else NothingToVoid()


def draw(order_id: str) -> float:
    """Return a number in [0, 1) that is always the same for an order and evenly spread over orders."""
    return int.from_bytes(blake2b(order_id.encode(), digest_size=7).digest(), "big") / 2**56
