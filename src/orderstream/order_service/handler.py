"""Turns the results of payment and stock into the state of orders, and commands the undoing of those that failed.

An event only says that something was decided about an order. What was decided stands in `payments` and `reservations`,
and is read from there: anyone with access to a topic can write an event. Facts merge and the status is derived
(domain/order.py). This module keeps P4 to P8.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from msgspec import Struct

from orderstream.cache import CacheInvalidator
from orderstream.domain import saga
from orderstream.domain.events import Event, Payload, order_aborted, order_updated
from orderstream.domain.order import Facts, FactUpdate, Order, PaymentFact, StockFact, aborts, apply, fold, settled
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import ORDER_COLUMNS, locked
from orderstream.postgres.orders import SQL as ORDERS
from orderstream.postgres.orders import changes as written
from orderstream.postgres.sql import load
from orderstream.worker.handler import Decision, Outgoing, Rejected, Timer

SQL = load("orderstream.order_service")
FORGET_OWED_SECONDS = 1.0

REFUTED_BY: dict[str, frozenset[str | None]] = {
    "payment.authorized": frozenset({None, "PENDING", "FAILED"}),
    "payment.failed": frozenset({None, "PENDING", "AUTHORIZED", "VOIDING"}),
    "payment.voided": frozenset({None, "PENDING", "AUTHORIZED", "VOIDING", "FAILED"}),
    "inventory.reserved": frozenset({None, "FAILED"}),
    "inventory.failed": frozenset({None, "RESERVED"}),
    "inventory.released": frozenset({None, "RESERVED", "FAILED"}),
}
"""Event type -> states of the decision's row (None: no row) in which no worker can have written such an event.

In every other state the event may be older than the row, also in a state that a newer version has added.
"""
SUCCESSES = ("payment.authorized", "inventory.reserved")
PAYMENT_FACTS: dict[str | None, PaymentFact] = {"AUTHORIZED": "authorized", "FAILED": "failed", "VOIDED": "voided"}
STOCK_FACTS: dict[str | None, StockFact] = {"RESERVED": "reserved", "FAILED": "failed", "RELEASED": "released"}
"""State of a decision's row -> what the order is told. Other states tell nothing: their events have yet to come."""


class _Recorded(Struct, frozen=True):
    """What is recorded about an order: the rows of `payments` and `reservations`, None where there is no row."""

    payment: str | None
    payment_at: datetime | None
    payment_reason: str | None
    payment_closed: bool
    stock: str | None
    stock_at: datetime | None
    stock_reason: str | None

    def refutes(self, event_type: str) -> bool:
        """Say whether no worker can have decided what an event of this type says."""
        if not event_type.startswith("payment."):
            return self.stock in REFUTED_BY[event_type]
        voided_again = self.payment == "VOIDING" and self.payment_closed
        return self.payment in REFUTED_BY[event_type] and not voided_again

    def update_for(self, event_type: str) -> FactUpdate:
        """Return what is recorded of that part of the order which an event of this type is about.

        If payment and stock have both succeeded, return both: one update confirms the order then.
        """
        if event_type in SUCCESSES and (self.payment, self.stock) == ("AUTHORIZED", "RESERVED"):
            return FactUpdate(Facts("authorized", "reserved", self.payment_at, self.stock_at))
        if not event_type.startswith("payment."):
            stock = STOCK_FACTS.get(self.stock, "none")
            stock_at = self.stock_at if stock != "none" else None
            return FactUpdate(Facts(stock=stock, stock_at=stock_at), stock_reason=self.stock_reason)
        payment = PAYMENT_FACTS.get(self.payment, "none")
        payment_at = self.payment_at if payment != "none" else None
        reason = self.payment_reason or ("PAYMENT_DECLINED" if payment == "failed" else None)
        return FactUpdate(Facts(payment=payment, payment_at=payment_at), payment_reason=reason)


class _Change(Struct, frozen=True):
    """What a batch did to one order; `before` and `after` are the same object when it changed nothing."""

    before: Order
    after: Order
    abort: bool

    @property
    def changed(self) -> bool:
        return self.after is not self.before


class OrderHandler:
    """Merges batches of payment and inventory results."""

    group = "order-service"
    topics = saga.topics_of(group)
    emits = saga.answers_of(group)

    def __init__(self, cache: CacheInvalidator, timers: Sequence[Timer]) -> None:
        self._cache = cache
        self.timers = (*timers, Timer("forget_owed", FORGET_OWED_SECONDS, self._forget_owed))

    def prepare(self, _connection: Connection, _batch: Sequence[Received], /) -> None:
        """Nothing to do outside the transaction."""

    def decide(self, tx: Connection, batch: Sequence[Received], _prepared: None, /) -> Decision:
        """Merge what is recorded of every order, write the rows that changed, and tell of every order touched.

        Records of orders that do not exist are rejected, and those that the decision's row refutes. A changed row that
        was settled already may be cached: its key is barred before the commit, so that no reader can put the old row
        back.
        """
        ids = sorted({received.order_id for received in batch})
        rows = tx.execute(SQL["lock_orders_with_decisions"], {"ids": ids}).fetchall()
        orders, now = locked(row[:ORDER_COLUMNS] for row in rows)
        updates, last, reject = _believed(batch, {row[0]: _Recorded(*row[ORDER_COLUMNS:]) for row in rows})
        changes = [_change(orders[order_id], update, now) for order_id, update in sorted(updates.items()) if now]
        changed = [change for change in changes if change.changed]
        if changed:
            tx.execute(ORDERS["update_orders"], written([change.after for change in changed]))
        if late := [change.before.order_id for change in changed if settled(change.before.state.status)]:
            self._cache.bar(late)
        return Decision(
            emit=[Outgoing(event, last[change.before.order_id]) for change in changes for event in _events(change)],
            reject=reject,
            after_commit=self._forget([change.before.order_id for change in changed]),
        )

    def _forget_owed(self, _connection: Connection) -> bool:
        """Have the cache forget what it could not be told of while it was away; it remembers that itself."""
        self._cache.delete(())
        return False

    def _forget(self, ids: list[str]) -> Callable[[], None]:
        def forget() -> None:
            if ids:
                self._cache.delete(ids)

        return forget


def _believed(
    batch: Sequence[Received], recorded: dict[str, _Recorded]
) -> tuple[dict[str, FactUpdate], dict[str, Received], list[Rejected]]:
    """Return the update of each order, the last record that brought one, and the records that are rejected."""
    updates: dict[str, FactUpdate] = {}
    last: dict[str, Received] = {}
    reject: list[Rejected] = []
    for received in batch:
        order_id, event_type = received.order_id, received.event.type
        order = recorded.get(order_id)
        if order is None:
            reject.append(Rejected(received, "UNKNOWN_ORDER", order_id))
        elif order.refutes(event_type):
            state = order.payment if event_type.startswith("payment.") else order.stock
            reject.append(Rejected(received, "NOT_DECIDED", f"{event_type}, but the decision is {state or 'missing'}"))
        else:
            update = order.update_for(event_type)
            updates[order_id] = fold(updates[order_id], update) if order_id in updates else update
            last[order_id] = received
    return updates, last, reject


def _change(order: Order, update: FactUpdate, now: datetime) -> _Change:
    state = apply(order.state, update)
    abort = aborts(order.state, state, update)
    return _Change(order, order.with_state(state, now, abort=abort), abort)


def _events(change: _Change) -> list[Event[Payload]]:
    """Return the order's row as an event, whether it changed or not, and the abort if there is one."""
    updated = order_updated(change.after)
    return [updated, order_aborted(change.after)] if change.abort else [updated]
