"""Authorizes the payment of new orders and has those of aborted ones voided: at most one charge an order (P2).

One row in `payments` is the decision for an order; whatever comes again is answered from it (P7). What takes more than
one attempt is left to the timer (attempts.py).
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import assert_never

import msgspec
from msgspec import Struct

from orderstream.domain.events import (
    OrderAborted,
    OrderCreated,
    Payload,
    PaymentAuthorized,
    PaymentFailed,
    PaymentVoided,
    build,
    topic,
)
from orderstream.domain.order import FailureReason
from orderstream.domain.payment import Authorized, Charge, Declined, NotAsked, Outcome, Pending, State, Unanswered
from orderstream.kafka.envelope import Received
from orderstream.payment_worker.attempts import Attempts
from orderstream.payment_worker.provider import Desk, PaymentProvider
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load
from orderstream.worker.handler import Decision, Outgoing, Rejected, Timer

SQL = load("orderstream.payment_worker")
_encode = msgspec.json.Encoder(decimal_format="number").encode


class _New(Struct, frozen=True):
    """A row about to be inserted; `delay` is the seconds until the timer takes it up, None for a final state."""

    order_id: str
    state: State
    amount: Decimal | None = None
    reason: FailureReason | None = None
    attempts: int = 0
    delay: float | None = None
    traceparent: str | None = None
    tracestate: str | None = None


class _Row(Struct, frozen=True):
    """A row of `payments`."""

    state: State
    reason: FailureReason | None
    decided_at: datetime


class Answers(Struct, frozen=True):
    """What the provider said, by order id, of the orders that had no payment yet; and those too old to be asked for."""

    outcomes: dict[str, Outcome]
    charges: dict[str, Charge]
    too_old: Sequence[str] = ()


class PaymentHandler:
    """Decides payments for batches of order.created and order.aborted."""

    group = "payment-worker"
    topics: tuple[str, ...] = (topic("order.created"), topic("order.aborted"))
    emits: tuple[str, ...] = ("payment.authorized", "payment.failed", "payment.voided")

    def __init__(self, provider: PaymentProvider, desk: Desk, attempts: Attempts) -> None:
        self._provider = provider
        self._desk = desk
        self._attempts = attempts
        self.timers = (Timer("attempts", 0.2, attempts.run), Timer("measure_voiding", 5.0, attempts.measure))

    def prepare(self, connection: Connection, batch: Sequence[Received], /) -> Answers:
        """Ask the provider about the orders of the batch that are new and not aborted, within the desk's budget."""
        created, aborted = _sort(batch)
        ids = [order_id for order_id in created if order_id not in aborted]
        parameters = {"ids": ids, "oldest_seconds": self._attempts.oldest_seconds}
        unasked = connection.execute(SQL["unasked"], parameters).fetchall() if ids else []
        charges = {order_id: Charge(order_id, *rest) for order_id, *rest, too_old in unasked if not too_old}
        return Answers(
            self._desk.ask(charges.items(), self._provider.authorize),
            charges,
            [order_id for order_id, *_, too_old in unasked if too_old],
        )

    def decide(self, tx: Connection, batch: Sequence[Received], prepared: Answers, /) -> Decision:
        """Record what is new, and answer every record from what is then recorded.

        An authorization that finds its payment ended meanwhile is voided. Records of unknown orders are rejected.
        """
        created, aborted = _sort(batch)
        new = [
            self._first(created[order_id], prepared.charges[order_id], outcome)
            for order_id, outcome in prepared.outcomes.items()
        ]
        new += [_voiding(created[order_id], "PROVIDER_UNAVAILABLE") for order_id in prepared.too_old]
        new += [_voiding(received, _reason(received)) for received in aborted.values()]
        rows = self._insert(tx, new)
        if aborted:
            self._begin_voids(tx, [one for order_id, one in aborted.items() if order_id not in rows], OPEN)
        late = [key for key, answer in prepared.outcomes.items() if isinstance(answer, Authorized) and key not in rows]
        if late:
            self._begin_voids(tx, [created[order_id] for order_id in late], ENDED)
        missing = [order_id for order_id in (*created, *aborted) if order_id not in rows]
        if missing:
            found = tx.execute(SQL["payments_of"], {"ids": missing}).fetchall()
            rows |= {order_id: _Row(state, reason, at) for order_id, state, reason, at in found}
        answers = ((one, _answer(one, rows[one.order_id])) for one in batch if one.order_id in rows)
        return Decision(
            emit=[Outgoing(build(answer, rows[one.order_id].decided_at), one) for one, answer in answers if answer],
            reject=[Rejected(one, "UNKNOWN_ORDER", one.order_id) for one in batch if one.order_id not in rows],
        )

    def _first(self, received: Received, charge: Charge, outcome: Outcome) -> _New:
        match outcome:
            case Authorized():
                return _New(received.order_id, "AUTHORIZED", charge.amount, attempts=1)
            case Declined():
                return _New(received.order_id, "FAILED", charge.amount, "PAYMENT_DECLINED", attempts=1)
            case Pending() | Unanswered():
                delay = self._attempts.delay_seconds(1)
                return _New(received.order_id, "PENDING", charge.amount, None, 1, delay, *received.record.carrier())
            case NotAsked():
                delay = self._attempts.delay_seconds(1)
                return _New(received.order_id, "PENDING", charge.amount, None, 0, delay, *received.record.carrier())
            case other:
                assert_never(other)

    @staticmethod
    def _insert(tx: Connection, new: list[_New]) -> dict[str, _Row]:
        if not new:
            return {}
        new.sort(key=lambda one: one.order_id)
        inserted = tx.execute(SQL["insert_payments"], {"payments": _encode(new).decode()}).fetchall()
        return {order_id: _Row(state, reason, at) for order_id, state, reason, at in inserted}

    @staticmethod
    def _begin_voids(tx: Connection, causes: Sequence[Received], from_states: list[State]) -> None:
        causes = sorted(causes, key=lambda one: one.order_id)
        carriers = [one.record.carrier() for one in causes]
        tx.execute(
            SQL["begin_voids"],
            {
                "ids": [one.order_id for one in causes],
                "reasons": [_reason(one) for one in causes],
                "traceparents": [traceparent for traceparent, _ in carriers],
                "tracestates": [tracestate for _, tracestate in carriers],
                "from_states": from_states,
            },
        )


OPEN: list[State] = ["PENDING", "AUTHORIZED"]
ENDED: list[State] = ["VOIDED", "FAILED"]


def _sort(batch: Sequence[Received]) -> tuple[dict[str, Received], dict[str, Received]]:
    """Part a batch into orders created and orders aborted, one record each."""
    created: dict[str, Received] = {}
    aborted: dict[str, Received] = {}
    for received in batch:
        kind = aborted if isinstance(received.event.payload, OrderAborted) else created
        kind[received.order_id] = received
    return created, aborted


def _reason(received: Received) -> FailureReason | None:
    """Return why an order was aborted; None if it was cancelled, or not aborted at all."""
    payload = received.event.payload
    return payload.reason if isinstance(payload, OrderAborted) else None


def _voiding(received: Received, reason: FailureReason | None) -> _New:
    """Return the row of an order whose payment must not be asked for any more: it may be under way elsewhere."""
    return _New(received.order_id, "VOIDING", None, reason, 0, 0.0, *received.record.carrier())


def _answer(received: Received, row: _Row) -> Payload | None:
    """Return the event that a record is answered with; None while the outcome is open.

    An abort is never answered with payment.authorized: the row cannot say so after one.
    """
    payload = received.event.payload
    match row.state:
        case "AUTHORIZED" if isinstance(payload, OrderCreated):
            return PaymentAuthorized(
                order_id=received.order_id, items=payload.items, amount=payload.amount, currency=payload.currency
            )
        case "FAILED":
            return PaymentFailed(order_id=received.order_id, reason=row.reason or "PAYMENT_DECLINED")
        case "VOIDED":
            return PaymentVoided(order_id=received.order_id, reason=row.reason)
        case _:
            return None
