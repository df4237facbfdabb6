"""Nudges an order: makes its next check, and the next attempt of its payment, due at once, and records the action.

It decides nothing. The watchdog and payment-worker do then what they would have done later.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from orderstream.console.actions.log import Action, recorded
from orderstream.http_server import problems
from orderstream.http_server.problems import Problem
from orderstream.payment_worker.attempts import CLAIM_MARGIN_SECONDS
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

CALL_MAX_SECONDS = 60.0
"""The largest PAYMENT_TIMEOUT_SECONDS: no call to the provider takes longer."""

SQL = load("orderstream.console.orders")


class Nudged(Struct, frozen=True, rename="camel"):
    """The result of a nudge: whether the next check and the next attempt are due now, and what happens then."""

    order_id: str
    check_is_due: bool
    attempt_is_due: bool
    action_id: int
    text: str


class PendingWork(Struct, frozen=True):
    """What may be brought forward for an order: the row of `pending_work`. Times are seconds from now."""

    status: str
    compensating: bool
    has_event: bool
    next_check: float
    payment_state: str | None
    is_pending: bool
    next_attempt: float | None

    @property
    def is_open(self) -> bool:
        """Whether the order is not settled."""
        return self.status in ("PROCESSING", "PAID")


def nudge_order(connection: Connection, order_id: str, *, actor: str, reason: str) -> Nudged:
    """Make the next check and attempt of an order due at once.

    An attempt whose call may be running is left alone, so that no call is made twice. Raises Problem 404, Problem 409
    if there is nothing to nudge, and psycopg.Error.
    """
    row = connection.execute(SQL["pending_work"], {"id": order_id}).fetchone()
    if row is None:
        raise problems.not_found("order")
    work = PendingWork(*row)
    if not (work.is_open or work.compensating or work.next_attempt is not None):
        raise _settled(work.status)
    with recorded(connection, Action("order.nudge", order_id, actor, reason)) as outcome:
        check = _changed(connection, "bring_check_forward", {"id": order_id})
        claim = CALL_MAX_SECONDS + CLAIM_MARGIN_SECONDS
        attempt = _changed(
            connection, "bring_attempt_forward", {"id": order_id, "margin": CLAIM_MARGIN_SECONDS, "claim": claim}
        )
        text = " ".join(_sentences(work, check=check, attempt=attempt))
        outcome.result = {"checkIsDue": check, "attemptIsDue": attempt, "text": text}
        return Nudged(order_id, check, attempt, outcome.action_id, text)


def _changed(connection: Connection, name: str, parameters: dict[str, Any]) -> bool:
    return connection.execute(SQL[name], parameters).fetchone() is not None


def _sentences(work: PendingWork, *, check: bool, attempt: bool) -> Sequence[str]:
    """Say what was brought forward, what happens then, and why nothing may happen."""
    said = []
    if check:
        said.append("The watchdog checks the order within a second.")
    elif work.is_open or work.compensating:
        said.append("The check of the order was due already.")
    if attempt:
        said.append("payment-worker makes the next attempt at once.")
    elif work.next_attempt is not None and work.next_attempt > 0:
        said.append(
            f"The next attempt at the payment stays {work.next_attempt:.0f} s away, because a call may be running."
        )
    elif work.next_attempt is not None:
        said.append("The next attempt at the payment was due already.")
    if work.has_event:
        said.append("An event of the order waits in the outbox. Until the relay has published it, the watchdog waits.")
    elif work.is_open and work.is_pending:
        said.append("The customer or the bank has not decided. The watchdog repeats no event while they may decide.")
    elif work.is_open or work.compensating:
        said.append("If an event of the order still waits in Kafka, the watchdog repeats nothing.")
    return said


def _settled(status: str) -> Problem:
    detail = f"The order is {status}, and nothing is left to do for it. There is nothing to nudge."
    return Problem(409, "nothing-to-nudge", "Nothing to nudge", detail)
