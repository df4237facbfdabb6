"""The interface of a payment provider: what an adapter must do and may rely on (P2).

tests/support/provider_contract.py checks an adapter. docs/payment-provider.md shows how to write one.
"""

from typing import Protocol

from msgspec import Struct

from orderstream.domain.payment import Authorized, Charge, Declined, NothingToVoid, Pending, Voided
from orderstream.telemetry.tracing import NO_TRACE, RecordedSpan, TraceContext


class ProviderUnavailableError(Exception):
    """The provider gave no usable answer, so it is unknown whether it acted. The worker retries with the same key."""


class ProviderRefusedError(Exception):
    """The provider certainly did not act: 429, 503, a wrong API key, or a connection that was never made.

    The worker retries with the same key, but not within `retry_after_seconds`, of which it obeys at most 300 s. The
    call does not count as an attempt.
    """

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class CallContext(Struct, frozen=True):
    """The time that is left for one call, and the trace that it belongs to.

    `span` is the span of the call if its trace is recorded. An adapter may add attributes to it, but no secret.
    """

    timeout_seconds: float
    trace: TraceContext = NO_TRACE
    span: RecordedSpan | None = None


class PaymentProvider(Protocol):
    """An adapter of a payment provider. One event loop calls it, many calls at a time. The order id is the key.

    The worker may call any method several times for one key, from several processes at once, and in any order. It
    cancels a call at `timeout_seconds`, or earlier. A cancelled call counts as one without an answer. After any
    exception other than ProviderRefusedError the worker assumes that the provider may have acted.
    """

    async def authorize(self, charge: Charge, call: CallContext) -> Authorized | Declined | Pending:
        """Hold the amount, or return the outcome that the key has already. It must not hold an amount twice.

        An outcome other than Pending is final: a later call returns the same one, unless the key was voided. After a
        void of the key, the call must not hold an amount again. Raises ProviderUnavailableError if the outcome is
        unknown, and ProviderRefusedError if it is certain that the provider did not act.
        """
        ...

    async def void(self, order_id: str, call: CallContext) -> Voided | NothingToVoid:
        """Release the held amount of a key, or return the result of an earlier void.

        Return only when the key can never hold an amount again, also if it was never used, or if a call to authorize is
        still under way. Raises the same errors as `authorize`.
        """
        ...

    async def close(self) -> None:
        """Close the connections. Called once, after the last call."""
        ...
