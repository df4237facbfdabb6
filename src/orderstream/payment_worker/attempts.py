"""The payments that one attempt did not finish: asked again, or voided, when their time has come (P2, P5).

Attempts are rows claimed on the database's clock, not sleeps; their events go through the outbox, as nothing in Kafka
would repeat them.
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

from orderstream.domain.events import Item, Payload, PaymentAuthorized, PaymentFailed, PaymentVoided, build
from orderstream.domain.order import AnyReason
from orderstream.domain.payment import (
    Authorized,
    Charge,
    Declined,
    NotAsked,
    NothingToVoid,
    Outcome,
    Pending,
    State,
    Unanswered,
    Voided,
)
from orderstream.payment_worker.provider import PaymentProvider
from orderstream.payment_worker.provider_calls import ProviderCalls
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import items_of
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.postgres.sql import load
from orderstream.telemetry import metrics
from orderstream.worker.due_scan import FLOOR, DueScan, statement_limit

CLAIM_ROWS = 200
CLAIM_SECONDS = 30.0
"""How long a claim keeps other workers from an attempt. It is longer than the budget of the calls."""
OLDEST_LAG = timedelta(minutes=1)
"""A void that commits later than its neighbours began no earlier than this before them."""

SQL = load("orderstream.payment_worker")
_encode = msgspec.json.Encoder(decimal_format="number").encode


class Backoff(Struct, frozen=True):
    """When to ask again: the wait doubles from `base_seconds` to `max_seconds`, with jitter; `max_attempts` in all."""

    max_attempts: int
    base_seconds: float
    max_seconds: float

    def delay_seconds(self, attempts: int) -> float:
        """Return the wait after so many attempts: between half and all of the doubled time."""
        longest: float = min(self.max_seconds, self.base_seconds * 2 ** min(attempts - 1, 30))
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing


class _Claim(Struct, frozen=True):
    """A payment whose attempt is due; the columns of `claim_due`."""

    order_id: str
    state: State
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
    """What an attempt came to; `delay` is the seconds until the next, None for a final state."""

    order_id: str
    began: State
    state: State
    reason: AnyReason | None
    attempts: int
    amount: Decimal | None = None
    delay: float | None = None


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
        """Age beyond which no order is asked for: the provider might have forgotten its key, and charge again."""

    def run(self, connection: Connection) -> bool:
        """Make the attempts that are due, at most CLAIM_ROWS; return whether there may be more."""
        claims = self._claim(connection)
        if not claims:
            return False
        answers = self._provider_calls.run(claims.items(), self._call)
        attempts = [self._attempt(claim, answers[order_id]) for order_id, claim in sorted(claims.items())]
        with connection.transaction():
            self._finish(connection, claims, attempts)
        return len(claims) == CLAIM_ROWS

    def _claim(self, connection: Connection) -> dict[str, _Claim]:
        """Claim what is due, range by range, at most CLAIM_ROWS payments."""
        row = connection.execute(SQL["now"]).fetchone()
        assert row is not None
        claims: dict[str, _Claim] = {}
        for part in self._due.ranges(row[0]):
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
        """Show how old the oldest payment is that should be voided and is not; there is no more to do."""
        row = connection.execute(SQL["oldest_voiding"], {"after": self._oldest_voiding_after}).fetchone()
        assert row is not None
        oldest, now = row
        metrics.VOIDING_OLDEST_SECONDS.set((now - (oldest or now)).total_seconds())
        self._oldest_voiding_after = max(self._oldest_voiding_after, (oldest or now) - OLDEST_LAG)
        return False

    def delay_seconds(self, attempts: int) -> float:
        """Return the wait after so many attempts at one payment."""
        return self._backoff.delay_seconds(attempts)

    def _call(self, claim: _Claim, timeout_seconds: float) -> Outcome | Voided | NothingToVoid:
        if claim.state == "VOIDING":
            return self._provider.void(claim.order_id, timeout_seconds)
        if claim.state != "PENDING":
            return NotAsked()
        if claim.too_old:
            return Unanswered()
        charge = Charge(claim.order_id, claim.amount, claim.currency, claim.created_at)
        return self._provider.authorize(charge, timeout_seconds)

    def _attempt(self, claim: _Claim, answer: Outcome | Voided | NothingToVoid) -> _Attempt:
        number = claim.attempts + 1
        match answer:
            case Authorized():
                return _Attempt(claim.order_id, claim.state, "AUTHORIZED", None, number, claim.amount)
            case Declined():
                return _Attempt(claim.order_id, claim.state, "FAILED", "PAYMENT_DECLINED", number, claim.amount)
            case Voided() | NothingToVoid():
                state: State = "FAILED" if claim.reason == "PROVIDER_UNAVAILABLE" else "VOIDED"
                return _Attempt(claim.order_id, claim.state, state, claim.reason, number)
            case Pending() | Unanswered():
                if claim.state == "PENDING" and (claim.too_old or number >= self._backoff.max_attempts):
                    return _Attempt(claim.order_id, claim.state, "VOIDING", "PROVIDER_UNAVAILABLE", 0, delay=0)
                delay = self.delay_seconds(number)
                return _Attempt(claim.order_id, claim.state, claim.state, claim.reason, number, delay=delay)
            case NotAsked():
                delay = self.delay_seconds(1)
                return _Attempt(claim.order_id, claim.state, claim.state, claim.reason, claim.attempts, delay=delay)
            case other:
                assert_never(other)

    def _finish(self, tx: Connection, claims: dict[str, _Claim], attempts: Sequence[_Attempt]) -> None:
        """Record the attempts whose payment stayed as it was, and have late authorizations of the others voided."""
        rows = tx.execute(SQL["finish_attempts"], {"attempts": _encode(attempts).decode()}).fetchall()
        recorded = {order_id for order_id, *_ in rows}
        late = [
            attempt.order_id
            for attempt in attempts
            if attempt.state == "AUTHORIZED" and attempt.order_id not in recorded
        ]
        if late:
            tx.execute(SQL["void_late_authorizations"], {"ids": late})
        authorized = [order_id for order_id, state, *_ in rows if state == "AUTHORIZED"]
        items = items_of(tx, authorized)
        append(
            tx,
            [
                OutboxRow(build(event, decided_at), traceparent, tracestate)
                for order_id, state, reason, decided_at, traceparent, tracestate in rows
                if (event := _event(claims[order_id], state, reason, items))
            ],
        )


def _event(claim: _Claim, state: State, reason: AnyReason | None, items: dict[str, tuple[Item, ...]]) -> Payload | None:
    """Return the event that a recorded attempt leads to; None while the outcome is open."""
    match state:
        case "AUTHORIZED":
            return PaymentAuthorized(
                order_id=claim.order_id,
                items=items.get(claim.order_id, ()),
                amount=claim.amount,
                currency=claim.currency,
            )
        case "FAILED":
            return PaymentFailed(order_id=claim.order_id, reason=reason or "PAYMENT_DECLINED")
        case "VOIDED":
            return PaymentVoided(order_id=claim.order_id, reason=reason)
        case _:
            return None
