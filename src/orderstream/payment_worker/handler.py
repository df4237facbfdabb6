"""Authorizes the payment of new orders and has those of aborted ones voided: at most one charge an order (P2).

One row in `payments` is the decision for an order; whatever comes again is answered from it (P7). What takes more than
one attempt is left to the timer (attempts.py). An event only names an order. What to charge, for which lines, and
whether the order is aborted, stands in `orders` and `order_items`: anyone with access to a topic can write an event.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import assert_never

import msgspec
from msgspec import Struct

from orderstream.domain.events import (
    Item,
    OrderAborted,
    Payload,
    PaymentAuthorized,
    PaymentFailed,
    PaymentVoided,
    build,
    topic_of,
)
from orderstream.domain.order import AnyReason
from orderstream.domain.payment import Authorized, Charge, Declined, NotAsked, Outcome, Pending, State, Unanswered
from orderstream.kafka.envelope import Received
from orderstream.payment_worker.attempts import Attempts
from orderstream.payment_worker.provider import PaymentProvider
from orderstream.payment_worker.provider_calls import ProviderCalls
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import aborts_of
from orderstream.postgres.sql import load
from orderstream.worker.handler import Decision, Outgoing, Timer
from orderstream.worker.unconfirmed_records import reject_unconfirmed

SQL = load("orderstream.payment_worker")
_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode_items = msgspec.json.Decoder(tuple[Item, ...]).decode


class _New(Struct, frozen=True):
    """A row about to be inserted; `delay` is the seconds until the timer takes it up, None for a final state."""

    order_id: str
    state: State
    amount: Decimal | None = None
    reason: AnyReason | None = None
    attempts: int = 0
    delay: float | None = None
    traceparent: str | None = None
    tracestate: str | None = None


class _Row(Struct, frozen=True):
    """A row of `payments`."""

    state: State
    reason: AnyReason | None
    decided_at: datetime


class _Accepted(Struct, frozen=True):
    """What was accepted: the columns of `accepted`."""

    order_id: str
    amount: Decimal
    currency: str
    created_at: datetime
    items: tuple[Item, ...]
    too_old: bool
    has_payment: bool

    @property
    def charge(self) -> Charge:
        return Charge(self.order_id, self.amount, self.currency, self.created_at)


class Answers(Struct, frozen=True):
    """What the tables and the provider say of the orders of a batch, by order id.

    `accepted` are the created ones that exist, `outcomes` those that had no payment yet and are not too old to be asked
    for, `aborts` the reasons of those that are aborted.
    """

    accepted: dict[str, _Accepted]
    outcomes: dict[str, Outcome]
    aborts: dict[str, AnyReason | None]


class PaymentHandler:
    """Decides payments for batches of order.created and order.aborted."""

    group = "payment-worker"
    topics: tuple[str, ...] = (topic_of("order.created"), topic_of("order.aborted"))
    emits: tuple[str, ...] = ("payment.authorized", "payment.failed", "payment.voided")

    def __init__(self, provider: PaymentProvider, provider_calls: ProviderCalls, attempts: Attempts) -> None:
        self._provider = provider
        self._provider_calls = provider_calls
        self._attempts = attempts
        self.timers = (Timer("attempts", 0.2, attempts.run), Timer("measure_voiding", 5.0, attempts.measure))

    def prepare(self, connection: Connection, batch: Sequence[Received], /) -> Answers:
        """Request the payment of each new order of the batch that is not aborted, within the budget of the calls."""
        created, aborted = _sort(batch)
        aborts = {key: abort.reason for key, abort in aborts_of(connection, list(aborted)).items() if abort.aborted}
        ids = [order_id for order_id in created if order_id not in aborts]
        parameters = {"ids": ids, "oldest_seconds": self._attempts.oldest_seconds}
        rows = connection.execute(SQL["accepted"], parameters).fetchall() if ids else []
        accepted = {
            order_id: _Accepted(order_id, amount, currency, created_at, _decode_items(items), too_old, has_payment)
            for order_id, amount, currency, created_at, items, too_old, has_payment in rows
        }
        charges = {key: order.charge for key, order in accepted.items() if not order.too_old and not order.has_payment}
        return Answers(accepted, self._provider_calls.run(charges.items(), self._provider.authorize), aborts)

    def decide(self, tx: Connection, batch: Sequence[Received], prepared: Answers, /) -> Decision:
        """Record what is new, and answer every record from what is then recorded.

        An authorization that finds its payment ended meanwhile is voided. Records that the tables refute are rejected.
        """
        created, said_aborted = _sort(batch)
        accepted, aborts = prepared.accepted, prepared.aborts
        aborted = {order_id: received for order_id, received in said_aborted.items() if order_id in aborts}
        new = [
            self._first(created[order_id], accepted[order_id].charge, outcome)
            for order_id, outcome in prepared.outcomes.items()
        ]
        too_old = [key for key, order in accepted.items() if order.too_old and not order.has_payment]
        new += [_voiding(created[order_id], "PROVIDER_UNAVAILABLE") for order_id in too_old]
        new += [_voiding(received, aborts[order_id]) for order_id, received in aborted.items()]
        rows = self._insert(tx, new)
        if aborted:
            self._begin_voids(tx, [received for key, received in aborted.items() if key not in rows], aborts, OPEN)
        late = [key for key, answer in prepared.outcomes.items() if isinstance(answer, Authorized) and key not in rows]
        if late:
            self._begin_voids(tx, [created[order_id] for order_id in late], aborts, ENDED)
        missing = [order_id for order_id in (*accepted, *aborted) if order_id not in rows]
        if missing:
            found = tx.execute(SQL["payments_of"], {"ids": missing}).fetchall()
            rows |= {order_id: _Row(state, reason, at) for order_id, state, reason, at in found}
        refuted = [received for received in batch if received.order_id not in (aborts if _is_abort(received) else rows)]
        answers = (
            (_answer(received, rows[received.order_id], accepted.get(received.order_id)), received)
            for received in batch
            if received.order_id in rows and (received.order_id in aborts or not _is_abort(received))
        )
        return Decision(
            emit=[
                Outgoing(build(answer, rows[received.order_id].decided_at), received)
                for answer, received in answers
                if answer
            ],
            reject=reject_unconfirmed(tx, refuted),
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
        new.sort(key=lambda payment: payment.order_id)
        inserted = tx.execute(SQL["insert_payments"], {"payments": _encode(new).decode()}).fetchall()
        return {order_id: _Row(state, reason, at) for order_id, state, reason, at in inserted}

    @staticmethod
    def _begin_voids(
        tx: Connection, causes: Sequence[Received], aborts: Mapping[str, AnyReason | None], from_states: list[State]
    ) -> None:
        causes = sorted(causes, key=lambda cause: cause.order_id)
        carriers = [cause.record.carrier() for cause in causes]
        tx.execute(
            SQL["begin_voids"],
            {
                "ids": [cause.order_id for cause in causes],
                "reasons": [aborts.get(cause.order_id) for cause in causes],
                "traceparents": [traceparent for traceparent, _ in carriers],
                "tracestates": [tracestate for _, tracestate in carriers],
                "from_states": from_states,
            },
        )


OPEN: list[State] = ["PENDING", "AUTHORIZED"]
ENDED: list[State] = ["VOIDED", "FAILED"]


def _is_abort(received: Received) -> bool:
    return isinstance(received.event.payload, OrderAborted)


def _sort(batch: Sequence[Received]) -> tuple[dict[str, Received], dict[str, Received]]:
    """Part a batch into orders created and orders aborted, one record each."""
    created: dict[str, Received] = {}
    aborted: dict[str, Received] = {}
    for received in batch:
        kind = aborted if _is_abort(received) else created
        kind[received.order_id] = received
    return created, aborted


def _voiding(received: Received, reason: AnyReason | None) -> _New:
    """Return the row of an order whose payment must not be asked for any more: it may be under way elsewhere."""
    return _New(received.order_id, "VOIDING", None, reason, 0, 0.0, *received.record.carrier())


def _answer(received: Received, row: _Row, accepted: _Accepted | None) -> Payload | None:
    """Return the event that a record is answered with; None while the outcome is open.

    An abort is never answered with payment.authorized: the row cannot say so after one.
    """
    match row.state:
        case "AUTHORIZED" if accepted and not _is_abort(received):
            return PaymentAuthorized(
                order_id=received.order_id, items=accepted.items, amount=accepted.amount, currency=accepted.currency
            )
        case "FAILED":
            return PaymentFailed(order_id=received.order_id, reason=row.reason or "PAYMENT_DECLINED")
        case "VOIDED":
            return PaymentVoided(order_id=received.order_id, reason=row.reason)
        case _:
            return None
