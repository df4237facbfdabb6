"""The attempts after the first: each payment that is due is authorized or voided (P2, P5).

An attempt is a row with a due time on the database's clock, not a sleep. A worker claims the row by moving that time.
The events go through the outbox, because no record in Kafka would repeat them.
"""

import random
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import assert_never

import msgspec
import psycopg
from msgspec import Struct

from orderstream.domain.events import build
from orderstream.domain.order import AnyReason
from orderstream.domain.payment import (
    Charge,
    NotAsked,
    Outcome,
    Transition,
    Unanswered,
    VoidOutcome,
    is_known,
    on_attempted,
)
from orderstream.payment_worker.answers import Purchase, answer
from orderstream.payment_worker.provider import PaymentProvider
from orderstream.payment_worker.provider_calls import ProviderCalls
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import items_of
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.postgres.sql import load
from orderstream.telemetry import metrics
from orderstream.telemetry.tracing import TraceContext
from orderstream.worker.due_scan import FLOOR, DueScan, statement_limit

CLAIM_ROWS = 200
CLAIM_SECONDS = 30.0
"""How long a claim keeps other workers from an attempt. It is longer than the budget of the calls."""
OLDEST_LAG = timedelta(minutes=1)
"""Transactions commit in another order than they began. A void began at most this long before one that is shown."""

SQL = load("orderstream.payment_worker")
_encode = msgspec.json.Encoder(decimal_format="number").encode


class Backoff(Struct, frozen=True):
    """When to retry: the wait doubles from `base_seconds` to `max_seconds`, with jitter, for `max_attempts` in all."""

    max_attempts: int
    base_seconds: float
    max_seconds: float

    def delay_seconds(self, attempts: int) -> float:
        """Return the wait after `attempts` attempts: between half and all of the doubled time."""
        longest: float = min(self.max_seconds, self.base_seconds * 2 ** min(attempts - 1, 30))
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing


class _Claim(Struct, frozen=True):
    """A payment whose attempt is due: the columns of `claim_due`."""

    order_id: str
    state: str
    reason: AnyReason | None
    attempts: int
    amount: Decimal
    currency: str
    created_at: datetime
    traceparent: str | None
    tracestate: str | None
    too_old: bool
    due_at: datetime


class _Attempt(Struct, frozen=True):
    """What `finish_attempts` records. `began` is the state before the attempt, `delay` the seconds until the next."""

    order_id: str
    began: str
    state: str
    reason: AnyReason | None
    attempts: int
    amount: Decimal | None
    delay: float | None


class _Payment(Struct, frozen=True):
    """A payment whose attempt was recorded: the columns of `finish_attempts`."""

    order_id: str
    state: str
    reason: AnyReason | None
    decided_at: datetime
    traceparent: str | None
    tracestate: str | None

    @property
    def trace_context(self) -> TraceContext:
        """The trace context of the record that caused the payment."""
        return TraceContext(self.traceparent, self.tracestate)


class Attempts:
    """The timer of the payment worker."""

    def __init__(
        self, provider: PaymentProvider, provider_calls: ProviderCalls, backoff: Backoff, key_lifetime_seconds: float
    ) -> None:
        self._provider = provider
        self._provider_calls = provider_calls
        self._backoff = backoff
        self._oldest_voiding_after = FLOOR
        self._due = DueScan(time.monotonic)
        self.oldest_seconds = key_lifetime_seconds / 2
        """Age beyond which no order is authorized: the provider may have forgotten its key, and would charge again."""

    def run(self, connection: Connection) -> bool:
        """Make the attempts that are due, at most CLAIM_ROWS. Return whether more may be due."""
        claims = self._claim(connection)
        if not claims:
            return False
        outcomes = self._provider_calls.run(claims.items(), self._call)
        attempts = [self._attempt(claim, outcomes[order_id]) for order_id, claim in sorted(claims.items())]
        with connection.transaction():
            self._finish(connection, claims, attempts)
        return len(claims) == CLAIM_ROWS

    def _claim(self, connection: Connection) -> dict[str, _Claim]:
        """Claim the payments that are due, range by range, at most CLAIM_ROWS."""
        row = connection.execute(SQL["now"]).fetchone()
        assert row is not None
        (now,) = row
        claims: dict[str, _Claim] = {}
        for part in self._due.ranges(now):
            started, left = time.monotonic(), CLAIM_ROWS - len(claims)
            between = {"after": part.after, "upto": part.upto, "limit": left}
            settings = {"push_seconds": CLAIM_SECONDS, "oldest_seconds": self.oldest_seconds}
            try:
                with statement_limit(connection, part):
                    taken = [_Claim(*row) for row in connection.execute(SQL["claim_due"], between | settings)]
            except psycopg.errors.QueryCanceled:
                if not part.is_limited:
                    raise
                self._due.note_timeout()
                break
            is_full = len(taken) == left
            latest = max(claim.due_at for claim in taken) if is_full else None
            self._due.note_scanned(part, latest, time.monotonic() - started)
            claims |= {claim.order_id: claim for claim in taken}
            if is_full:
                break
        return claims

    def measure(self, connection: Connection) -> bool:
        """Set the gauge to the age of the oldest payment in VOIDING. Return False, because no work is left."""
        row = connection.execute(SQL["oldest_voiding"], {"after": self._oldest_voiding_after}).fetchone()
        assert row is not None
        oldest, now = row
        metrics.VOIDING_OLDEST_SECONDS.set((now - (oldest or now)).total_seconds())
        self._oldest_voiding_after = max(self._oldest_voiding_after, (oldest or now) - OLDEST_LAG)
        return False

    def delay_seconds(self, transition: Transition) -> float | None:
        """Return the wait before the next attempt; None if there is no further attempt."""
        attempts = transition.backoff_attempts
        return self._backoff.delay_seconds(attempts) if attempts else attempts

    def _call(self, claim: _Claim, timeout_seconds: float) -> Outcome | VoidOutcome:
        if not is_known(claim.state):
            return NotAsked()
        match claim.state:
            case "VOIDING":
                return self._provider.void(claim.order_id, timeout_seconds)
            case "PENDING" if claim.too_old:
                return Unanswered()
            case "PENDING":
                charge = Charge(claim.order_id, claim.amount, claim.currency, claim.created_at)
                return self._provider.authorize(charge, timeout_seconds)
            case "AUTHORIZED" | "FAILED" | "VOIDED":
                return NotAsked()
            case _:
                assert_never(claim.state)

    def _attempt(self, claim: _Claim, outcome: Outcome | VoidOutcome) -> _Attempt:
        """Return what an attempt changes. A payment in a state of a newer version is only rescheduled."""
        if not is_known(claim.state):
            delay = self._backoff.delay_seconds(1)
            return _Attempt(claim.order_id, claim.state, claim.state, claim.reason, claim.attempts, None, delay)
        is_last = claim.too_old or claim.attempts + 1 >= self._backoff.max_attempts
        transition = on_attempted(claim.state, claim.reason, claim.attempts, outcome, is_last=is_last)
        is_decided = claim.state == "PENDING" and transition.backoff_attempts is None
        return _Attempt(
            claim.order_id,
            claim.state,
            transition.state,
            transition.reason,
            transition.attempts,
            claim.amount if is_decided else None,
            self.delay_seconds(transition),
        )

    def _finish(self, tx: Connection, claims: dict[str, _Claim], attempts: Sequence[_Attempt]) -> None:
        """Record the attempts and queue their events. An attempt is dropped if its payment has changed meanwhile.

        A dropped authorization is voided if its payment has ended.
        """
        found = tx.execute(SQL["finish_attempts"], {"attempts": _encode(attempts).decode()}).fetchall()
        payments = [_Payment(*row) for row in found]
        recorded = {payment.order_id for payment in payments}
        authorized = [attempt.order_id for attempt in attempts if attempt.state == "AUTHORIZED"]
        if late := [order_id for order_id in authorized if order_id not in recorded]:
            tx.execute(SQL["void_late_authorizations"], {"ids": late})
        items = items_of(tx, [payment.order_id for payment in payments if payment.state == "AUTHORIZED"])
        rows = []
        for payment in payments:
            claim = claims[payment.order_id]
            purchase = Purchase(items.get(payment.order_id, ()), claim.amount, claim.currency)
            if payload := answer(payment.order_id, payment.state, payment.reason, purchase):
                rows.append(OutboxRow(build(payload, payment.decided_at), payment.trace_context))
        append(tx, rows)
