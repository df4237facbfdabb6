"""Payments as pure functions: what the provider can answer, and what each input changes (P2).

A payment is one row for one order. The functions `on_...` are the rows of the table in docs/architecture.md. They say
what one input changes. PostgreSQL decides which of two concurrent inputs comes first.
"""

from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeGuard, assert_never, get_args

from msgspec import Struct

from orderstream.domain.order import AnyReason, PaymentFact

PaymentState = Literal["PENDING", "AUTHORIZED", "FAILED", "VOIDING", "VOIDED"]
STATES: tuple[PaymentState, ...] = get_args(PaymentState)


class Charge(Struct, frozen=True):
    """A request for money. `order_id` is the provider's idempotency key, so that a retry never charges twice."""

    order_id: str
    amount: Decimal
    currency: str
    accepted_at: datetime


class Authorized(Struct, frozen=True):
    """The provider holds the amount for us."""


class Declined(Struct, frozen=True):
    """The provider refuses the charge."""


class Pending(Struct, frozen=True):
    """The customer or the bank has not decided yet. A later call reads the decision. This call was no attempt."""


class Voided(Struct, frozen=True):
    """The provider has undone the charge. The key can never carry a charge again."""


class NothingToVoid(Struct, frozen=True):
    """There was no charge. The key can never carry one."""


class Unanswered(Struct, frozen=True):
    """No usable answer came in time, so it is unknown whether the provider acted.

    Do not treat it as a decline. Retry with the same key.
    """


class Refused(Struct, frozen=True):
    """The provider certainly did not act: it refused the call, or the worker had no room for it. This was no attempt.

    The next call must not begin within `retry_after_seconds`.
    """

    retry_after_seconds: float = 0.0


class InFlight(Struct, frozen=True):
    """The call still runs. A timer records its outcome later."""


class TooOld(Struct, frozen=True):
    """The order is so old that the provider may have forgotten its key. No call was made (decision 0021)."""


Outcome = Authorized | Declined | Pending | Unanswered | Refused
"""The outcome of an attempt to authorize."""
FirstOutcome = Outcome | InFlight | TooOld
"""The outcome of the first attempt, as far as the batch of its order knows it."""
VoidOutcome = Voided | NothingToVoid | Unanswered | Refused
"""The outcome of an attempt to void."""


class Transition(Struct, frozen=True):
    """The new state of a payment, with its reason and the number of attempts made in this state.

    `backoff_attempts` is the number of attempts from which the wait before the next one is calculated. 0 means: attempt
    at once. None means: no further attempt. If `is_pending`, the customer or the bank has not decided yet, and the wait
    is calculated from the time since the first such answer.
    """

    state: PaymentState
    reason: AnyReason | None = None
    attempts: int = 0
    backoff_attempts: int | None = None
    is_pending: bool = False


def is_known(state: str) -> TypeGuard[PaymentState]:
    """Say whether this version knows a state. A state that a newer version has added is left to that version."""
    return state in STATES


def on_created(  # noqa: PLR0911 - a return for each row of the table
    state: PaymentState | None, outcome: FirstOutcome
) -> Transition | None:
    """Return what the outcome of the first call changes. `state` is None if the order has no payment yet.

    Another process may have recorded a payment while the call ran. That payment stays, unless it has ended and this
    call was authorized: then the provider holds an amount that must be voided.
    """
    if state is not None:
        is_late = isinstance(outcome, Authorized) and state in ("FAILED", "VOIDED")
        return Transition("VOIDING", backoff_attempts=0) if is_late else None
    match outcome:
        case Authorized():
            return Transition("AUTHORIZED", attempts=1)
        case Declined():
            return Transition("FAILED", "PAYMENT_DECLINED", attempts=1)
        case Pending():
            return Transition("PENDING", backoff_attempts=1, is_pending=True)
        case Unanswered():
            return Transition("PENDING", attempts=1, backoff_attempts=1)
        case Refused() | InFlight():
            return Transition("PENDING", backoff_attempts=1)
        case TooOld():
            return Transition("VOIDING", "PROVIDER_UNAVAILABLE", backoff_attempts=0)
        case _:
            assert_never(outcome)


def on_aborted(state: PaymentState | None, reason: AnyReason | None) -> Transition | None:
    """Return what the abort of an order changes. `state` is None if the order has no payment yet.

    An order without a payment is voided, too: a call for it may be under way in another process.
    """
    match state:
        case None | "PENDING" | "AUTHORIZED":
            return Transition("VOIDING", reason, backoff_attempts=0)
        case "FAILED" | "VOIDING" | "VOIDED":
            return None
        case _:
            assert_never(state)


def on_attempted(  # noqa: PLR0911 - a return for each row of the table
    state: PaymentState,
    reason: AnyReason | None,
    attempts: int,
    outcome: Outcome | VoidOutcome,
    *,
    is_last: bool,
    is_overdue: bool = False,
) -> Transition:
    """Return what a further attempt changes: to authorize a PENDING payment, or to void a VOIDING one.

    `reason` and `attempts` are those of the payment before this attempt. If the last attempt to authorize has no
    outcome, the payment is voided, because the provider may have charged. If the customer or the bank has not decided
    and the payment `is_overdue`, it is voided, too. Voids are repeated without a limit.
    """
    match outcome:
        case Authorized():
            return Transition("AUTHORIZED", None, attempts + 1)
        case Declined():
            return Transition("FAILED", "PAYMENT_DECLINED", attempts + 1)
        case Voided() | NothingToVoid():
            return Transition("FAILED" if reason == "PROVIDER_UNAVAILABLE" else "VOIDED", reason, attempts + 1)
        case Pending() | Unanswered() if state == "PENDING" and (is_overdue if outcome == Pending() else is_last):
            return Transition("VOIDING", "PROVIDER_UNAVAILABLE", backoff_attempts=0)
        case Pending():
            return Transition(state, reason, backoff_attempts=1, is_pending=True)
        case Unanswered():
            return Transition(state, reason, attempts + 1, attempts + 1)
        case Refused():
            return Transition(state, reason, attempts, 1)
        case _:
            assert_never(outcome)


def fact_of(state: str | None) -> PaymentFact:
    """Return what an order may know of its payment, by the state of the payment or None if there is none.

    The fact is `none` while the outcome is open, and for a state of a newer version.
    """
    if state is None or not is_known(state):
        return "none"
    match state:
        case "AUTHORIZED":
            return "authorized"
        case "FAILED":
            return "failed"
        case "VOIDED":
            return "voided"
        case "PENDING" | "VOIDING":
            return "none"
        case _:
            assert_never(state)
