"""Authorizes the payment of new orders and voids the payments of aborted orders: at most one charge for one order (P2).

Each order has at most one row in `payments`. A repeated record is answered from that row (P7). A batch waits only a few
milliseconds for the provider. If a call takes longer, its payment is PENDING, and the timers (attempts.py) record the
answer. They also make every attempt after the first. An event only names an order. The amount, the lines and the abort
are read from `orders` and `order_items`, because anyone with access to a topic can write an event.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import Struct

from orderstream.domain import saga
from orderstream.domain.events import Item, OrderAborted, build, topic_of
from orderstream.domain.order import AnyReason
from orderstream.domain.payment import (
    STATES,
    Authorized,
    FirstOutcome,
    InFlight,
    PaymentState,
    Refused,
    TooOld,
    Transition,
    on_aborted,
    on_created,
)
from orderstream.kafka.envelope import Received
from orderstream.payment_worker.answers import Purchase, answer
from orderstream.payment_worker.attempts import Attempts, Claim, Schedule
from orderstream.payment_worker.calls import ProviderCalls
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import aborts_of
from orderstream.postgres.sql import load
from orderstream.process.gathering import OF_RECORDS
from orderstream.telemetry import databases
from orderstream.telemetry.tracing import NO_TRACE, TraceContext
from orderstream.worker.due_scan import FLOOR
from orderstream.worker.handler import BatchResult, Outgoing, Timer
from orderstream.worker.unconfirmed_records import reject_unconfirmed

SQL = load("orderstream.payment_worker")
RECORD = databases.summary(("INSERT", "payments"))
RECORD_AND_VOID = databases.summary(("INSERT", "payments"), ("UPDATE", "payments"))
"""What a batch writes, for its span."""
CREATED_TOPIC = topic_of("order.created")
VOIDED_BY_ABORT = [state for state in STATES if on_aborted(state, None)]
VOIDED_IF_AUTHORIZED_LATE = [state for state in STATES if on_created(state, Authorized())]

_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode_items = msgspec.json.Decoder(tuple[Item, ...]).decode


class _NewPayment(Struct, frozen=True):
    """A row for `insert_payments`. `delay` is the seconds until the next attempt, or None if there is none."""

    order_id: str
    state: PaymentState
    amount: Decimal | None = None
    reason: AnyReason | None = None
    attempts: int = 0
    delay: float | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    is_pending: bool = False


class _Payment(Struct, frozen=True):
    """A recorded payment: the columns of `insert_payments` and of `payments_of`."""

    order_id: str
    state: str
    reason: AnyReason | None
    decided_at: datetime


def _payments(rows: Iterable[Sequence[Any]]) -> dict[str, _Payment]:
    return {payment.order_id: payment for payment in (_Payment(*row) for row in rows)}


class _AcceptedOrder(Struct, frozen=True):
    """An order as the gateway accepted it."""

    order_id: str
    created_at: datetime
    purchase: Purchase
    too_old: bool
    has_payment: bool

    def claim(self, trace: TraceContext) -> Claim:
        """Return the claim that the payment has while its first call runs."""
        amount, currency = self.purchase.amount, self.purchase.currency
        return Claim(self.order_id, "PENDING", None, 0, amount, currency, self.created_at, *trace, False, None, FLOOR)


def _accepted_orders(rows: Iterable[Sequence[Any]]) -> dict[str, _AcceptedOrder]:
    """Return the orders of the rows of `accepted`, by order id."""
    return {
        order_id: _AcceptedOrder(
            order_id, created_at, Purchase(_decode_items(items), amount, currency), too_old, has_payment
        )
        for order_id, amount, currency, created_at, items, too_old, has_payment in rows
    }


class Prepared(Struct, frozen=True):
    """The tables and the provider's outcomes for the orders of a batch, by order id.

    `orders` are the created orders that exist and are not aborted. `outcomes` belong to those without a payment.
    `aborts` are the reasons of the aborted orders.
    """

    orders: dict[str, _AcceptedOrder]
    outcomes: dict[str, FirstOutcome]
    aborts: dict[str, AnyReason | None]


class PaymentHandler:
    """Decides payments for batches of order.created and order.aborted."""

    group = "payment-worker"
    topics = saga.topics_of(group)
    emits = saga.answers_of(group)
    gathering = OF_RECORDS

    def __init__(
        self,
        calls: ProviderCalls,
        attempts: Attempts,
        schedule: Schedule,
        inline_budget_seconds: float,
        wake: threading.Event,
    ) -> None:
        self._calls = calls
        self._schedule = schedule
        self._inline_budget_seconds = inline_budget_seconds
        self._is_paused = False
        self._due = attempts.due
        self.wake = wake
        self.timers = (
            Timer("answers", 1.0, attempts.record, attempts.has_answers, attempts.has_calls),
            Timer("attempts", 1.0, attempts.begin, due_at=lambda: self._due.at),
            Timer("measure_voiding", 5.0, attempts.measure),
        )

    def room(self) -> Mapping[str, int]:
        """Return how many calls for new orders may begin now. Other new orders wait in Kafka.

        After a pause, no such call begins until there is room for several, because a pause has a cost.
        """
        room = self._calls.room("new")
        if not room:
            self._calls.make_room("new")
        self._is_paused = room < (self._calls.room_to_resume if self._is_paused else 1)
        return {CREATED_TOPIC: 0 if self._is_paused else room}

    def prepare(self, connection: Connection, batch: Sequence[Received], /) -> Prepared:
        """Begin a call for each order of the batch that needs a first attempt, and wait a moment for the answers."""
        created, aborted = _sort(batch)
        aborts = {key: abort.reason for key, abort in aborts_of(connection, list(aborted)).items() if abort.aborted}
        ids = [order_id for order_id in created if order_id not in aborts]
        parameters = {"ids": ids, "oldest_seconds": self._schedule.oldest}
        orders = _accepted_orders(connection.execute(SQL["accepted"], parameters)) if ids else {}
        without_payment = [order for order in orders.values() if not order.has_payment]
        requests = [
            order.claim(created[order.order_id].record.trace_context()).request("new")
            for order in without_payment
            if not order.too_old
        ]
        self._calls.begin(requests, held=True)
        answers = self._calls.wait([request.order_id for request in requests], self._inline_budget_seconds)
        outcomes: dict[str, FirstOutcome] = {
            order.order_id: TooOld() if order.too_old else answers.get(order.order_id, Refused())
            for order in without_payment
        }
        return Prepared(orders, outcomes, aborts)

    def decide(self, tx: Connection, batch: Sequence[Received], prepared: Prepared, /) -> BatchResult:
        """Record the new payments, and then answer every record from the recorded payment.

        If another process has recorded a payment that ended meanwhile, an authorization is voided. Records that the
        tables do not confirm are rejected.
        """
        created, said_aborted = _sort(batch)
        orders, outcomes, aborts = prepared.orders, prepared.outcomes, prepared.aborts
        aborted = {order_id: received for order_id, received in said_aborted.items() if order_id in aborts}
        new = [
            self._new(created[order_id], transition, outcome, orders[order_id].purchase.amount)
            for order_id, outcome in outcomes.items()
            if (transition := on_created(None, outcome))
        ]
        new += [
            self._new(received, transition, None)
            for order_id, received in aborted.items()
            if (transition := on_aborted(None, aborts[order_id]))
        ]
        payments = self._insert(tx, new)
        met = [received for order_id, received in aborted.items() if order_id not in payments]
        if aborted:
            self._begin_voids(tx, met, aborts, VOIDED_BY_ABORT)
        late = [key for key, outcome in outcomes.items() if isinstance(outcome, Authorized) and key not in payments]
        if late:
            self._begin_voids(tx, [created[order_id] for order_id in late], aborts, VOIDED_IF_AUTHORIZED_LATE)
        if others := [order_id for order_id in (*orders, *aborted) if order_id not in payments]:
            payments |= _payments(tx.execute(SQL["payments_of"], {"ids": others}))
        delays = [0.0 for _ in (*met, *late)] + [payment.delay for payment in new if payment.delay is not None]
        return _answered(tx, batch, prepared, payments, self._recorded(prepared, min(delays, default=math.inf)))

    def _recorded(self, prepared: Prepared, next_seconds: float) -> Callable[[], None]:
        """Return what runs after the commit: forget the recorded calls, and release those that still run.

        `next_seconds` is the time until the next attempt that the batch has recorded.
        """

        def recorded() -> None:
            running = [key for key, outcome in prepared.outcomes.items() if isinstance(outcome, InFlight)]
            self._calls.release(running)
            self._calls.forget("authorize", prepared.outcomes.keys() - set(running))
            self._due.note(next_seconds)

        return recorded

    def _new(
        self,
        received: Received,
        transition: Transition,
        outcome: FirstOutcome | None,
        amount: Decimal | None = None,
    ) -> _NewPayment:
        """Return a new row. A payment that needs a further attempt keeps the trace of its record for that attempt."""
        match outcome:
            case InFlight():
                delay: float | None = self._schedule.claim
            case Refused(retry_after_seconds):
                delay = self._schedule.delay(transition, retry_after=retry_after_seconds)
            case _:
                delay = self._schedule.delay(transition)
        context = NO_TRACE if delay is None else received.record.trace_context()
        return _NewPayment(
            received.order_id,
            transition.state,
            None if transition.state == "VOIDING" else amount,
            transition.reason,
            transition.attempts,
            delay,
            *context,
            transition.is_pending,
        )

    @staticmethod
    def _insert(tx: Connection, new: list[_NewPayment]) -> dict[str, _Payment]:
        """Insert the rows, and return those that were inserted: another process may have been first."""
        if not new:
            return {}
        new.sort(key=lambda payment: payment.order_id)
        return _payments(tx.execute(SQL["insert_payments"], {"payments": _encode(new).decode()}))

    @staticmethod
    def _begin_voids(
        tx: Connection,
        causes: Sequence[Received],
        aborts: Mapping[str, AnyReason | None],
        from_states: list[PaymentState],
    ) -> None:
        causes = sorted(causes, key=lambda cause: cause.order_id)
        contexts = [cause.record.trace_context() for cause in causes]
        tx.execute(
            SQL["begin_voids"],
            {
                "ids": [cause.order_id for cause in causes],
                "reasons": [aborts.get(cause.order_id) for cause in causes],
                "traceparents": [context.traceparent for context in contexts],
                "tracestates": [context.tracestate for context in contexts],
                "from_states": from_states,
            },
        )


def _is_abort(received: Received) -> bool:
    return isinstance(received.event.payload, OrderAborted)


def _sort(batch: Sequence[Received]) -> tuple[dict[str, Received], dict[str, Received]]:
    """Divide a batch into orders created and orders aborted, with one record for each order."""
    created: dict[str, Received] = {}
    aborted: dict[str, Received] = {}
    for received in batch:
        kind = aborted if _is_abort(received) else created
        kind[received.order_id] = received
    return created, aborted


def _answered(
    tx: Connection,
    batch: Sequence[Received],
    prepared: Prepared,
    payments: Mapping[str, _Payment],
    after_commit: Callable[[], None],
) -> BatchResult:
    """Answer the records that the tables confirm, and reject the others."""
    emit, unconfirmed = [], []
    for received in batch:
        order_id = received.order_id
        if order_id not in (prepared.aborts if _is_abort(received) else payments):
            unconfirmed.append(received)
            continue
        payment, order = payments.get(order_id), prepared.orders.get(order_id)
        if payment is None:
            continue
        purchase = order.purchase if order else None
        if payload := answer(order_id, payment.state, payment.reason, purchase):
            emit.append(Outgoing(build(payload, payment.decided_at), received))
    summary = RECORD_AND_VOID if prepared.aborts else RECORD
    return BatchResult(emit, reject_unconfirmed(tx, unconfirmed), after_commit, summary)
