"""One call to the payment provider: the request, the call while it uses room, and how it ended."""

import asyncio
from typing import Literal

from msgspec import Struct

from orderstream.domain.payment import Charge, Outcome, VoidOutcome
from orderstream.payment_worker.breaker import Ticket
from orderstream.payment_worker.lanes import Lane
from orderstream.telemetry.tracing import TraceContext

Kind = Literal["authorize", "void"]
"""The method of the provider."""
Verdict = Literal["success", "failure"]
"""What the end of a call says about the provider."""


class Request(Struct, frozen=True):
    """A call to make: to authorize `charge`, or to void the order if there is no charge.

    `attempts` is the number of attempts before this one. `subject` is the caller's own data about the order.
    """

    order_id: str
    lane: Lane
    attempts: int
    charge: Charge | None
    trace: TraceContext
    subject: object = None

    @property
    def kind(self) -> Kind:
        """The method that the request needs."""
        return "void" if self.charge is None else "authorize"


class Ended(Struct, frozen=True):
    """A call that has ended, with its outcome."""

    request: Request
    outcome: Outcome | VoidOutcome


class Call:
    """A call that uses room: it runs, or its outcome is not recorded yet. Times are monotonic seconds.

    The loop owns `task`, `began_at`, `deadline` and `is_given_up`. ProviderCalls owns the other fields that change.
    """

    __slots__ = (
        *("batch", "began_at", "deadline", "held_at", "is_forgotten", "is_given_up", "is_stopped", "kind", "lane"),
        *("outcome", "request", "task", "ticket", "timeout_seconds"),
    )

    def __init__(
        self, request: Request, ticket: Ticket, batch: int, timeout_seconds: float, held_at: float | None
    ) -> None:
        self.request = request
        self.kind: Kind = request.kind
        self.lane = request.lane
        self.ticket = ticket
        self.batch = batch
        """The number of the call to `begin`."""
        self.timeout_seconds = timeout_seconds
        self.held_at = held_at
        """When the caller began a held call, or began it again. None after the release."""
        self.outcome: Outcome | VoidOutcome | None = None
        self.is_stopped = False
        """The task has ended."""
        self.is_forgotten = False
        """The caller does not need the outcome, or has recorded it."""
        self.task: asyncio.Task[None] | None = None
        self.began_at = self.deadline = 0.0
        self.is_given_up = False
        """The call has an outcome, although its task may still run."""


class End(Struct, frozen=True):
    """How a call ended. Without a verdict, the end says nothing about the provider.

    If not `is_stopped`, the loop has given up the call, and its task may still run.
    """

    call: Call
    outcome: Outcome | VoidOutcome
    seconds: float
    verdict: Verdict | None
    error: str | None
    is_stopped: bool
