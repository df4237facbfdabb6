"""Merges the results of payment and stock into orders, and emits the abort of an order that failed (P4 to P8).

An event only names an order. The handler reads the result itself from `payments` and `reservations`, because anyone
with access to a topic can write an event. Facts merge, and the status is derived from them (domain/order.py).
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from threading import Event as Signal

from msgspec import Struct

from orderstream.cache import CacheInvalidator
from orderstream.domain import payment, saga, stock
from orderstream.domain.events import Event, Payload, order_aborted, order_updated, topic_of
from orderstream.domain.order import AnyReason, Facts, FactUpdate, Order, aborts, apply, fold, settled
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import SQL as ORDERS
from orderstream.postgres.orders import LockedOrder
from orderstream.postgres.orders import changes as written
from orderstream.postgres.sql import load
from orderstream.process.gathering import OF_RECORDS, Gathering
from orderstream.telemetry import databases
from orderstream.telemetry.tracing import Operation
from orderstream.worker.handler import BatchResult, Outgoing, Rejected, Timer

SQL = load("orderstream.order_service")
FLUSH_SECONDS = 1.0
GATHER_SECONDS = 0.28
"""The longest wait. Most orders of a queue then come with both results, and one update confirms each."""
BATCH_RECORDS = 1_400
"""This service receives two records of each order. The other workers receive one."""
MERGE = databases.summary(("UPDATE", "orders"))

CONTRADICTED_BY: dict[str, frozenset[str | None]] = {
    "payment.authorized": frozenset({None, "PENDING", "FAILED"}),
    "payment.failed": frozenset({None, "PENDING", "AUTHORIZED", "VOIDING"}),
    "payment.voided": frozenset({None, "PENDING", "AUTHORIZED", "VOIDING", "FAILED"}),
    "inventory.reserved": frozenset({None, "FAILED"}),
    "inventory.failed": frozenset({None, "RESERVED"}),
    "inventory.released": frozenset({None, "RESERVED", "FAILED"}),
}
"""Event type -> states of the payment or reservation (None: no row) in which no worker can have emitted such an event.

In any other state, also one that a newer version has added, the event may be older than the state.
"""
SUCCESSES = (saga.PAYMENT_EVENTS["AUTHORIZED"], saga.STOCK_EVENTS["RESERVED"])
_ABOUT_PAYMENT = frozenset(saga.PAYMENT_EVENTS.values())


class _LockedOrder(LockedOrder, frozen=True):
    """A row of `lock_orders_with_payment_and_stock`. A state is None if the order has no payment or reservation."""

    payment_state: str | None
    payment_decided_at: datetime | None
    payment_reason: AnyReason | None
    payment_has_ended_before: bool
    stock_state: str | None
    stock_decided_at: datetime | None
    stock_reason: AnyReason | None

    def contradicts(self, event_type: str) -> bool:
        """Say whether no worker can have emitted an event of this type, given the payment and the reservation."""
        if event_type not in _ABOUT_PAYMENT:
            return self.stock_state in CONTRADICTED_BY[event_type]
        voided_again = self.payment_state == "VOIDING" and self.payment_has_ended_before
        return self.payment_state in CONTRADICTED_BY[event_type] and not voided_again

    def state_for(self, event_type: str) -> str:
        """Return in words the state that an event of this type is about."""
        if event_type in _ABOUT_PAYMENT:
            return f"payment is {self.payment_state or 'missing'}"
        return f"reservation is {self.stock_state or 'missing'}"

    def update_for(self, event_type: str) -> FactUpdate:
        """Return the recorded fact that an event of this type is about.

        If payment and stock have both succeeded, return both facts: one update confirms the order then.
        """
        if event_type in SUCCESSES and (self.payment_state, self.stock_state) == ("AUTHORIZED", "RESERVED"):
            return FactUpdate(Facts("authorized", "reserved", self.payment_decided_at, self.stock_decided_at))
        if event_type in _ABOUT_PAYMENT:
            fact = payment.fact_of(self.payment_state)
            decided_at = self.payment_decided_at if fact != "none" else None
            reason = self.payment_reason or ("PAYMENT_DECLINED" if fact == "failed" else None)
            return FactUpdate(Facts(payment=fact, payment_at=decided_at), payment_reason=reason)
        stock_fact = stock.fact_of(self.stock_state)
        decided_at = self.stock_decided_at if stock_fact != "none" else None
        return FactUpdate(Facts(stock=stock_fact, stock_at=decided_at), stock_reason=self.stock_reason)


class _Change(Struct, frozen=True):
    """An order before and after a batch. If the batch did not change it, both are the same object."""

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
    # The two results of one order are no queue. An authorized payment settles no order: the stock follows.
    gathering = Gathering(
        from_items=3,
        seconds_per_item=OF_RECORDS.seconds_per_item,
        longest_seconds=GATHER_SECONDS,
        shortest_seconds=OF_RECORDS.shortest_seconds,
        early_topics=(topic_of("payment.authorized"),),
        records_max=BATCH_RECORDS,
    )

    def __init__(self, cache: CacheInvalidator, timers: Sequence[Timer], deletes: Operation | None = None) -> None:
        """`deletes` describes the deletes of the cache for spans."""
        self._cache = cache
        self._deletes = deletes
        self.wake = Signal()
        self.timers = (*timers, Timer("flush_deletes", FLUSH_SECONDS, self._flush_deletes))

    def room(self) -> Mapping[str, int]:
        """Take every record: this service calls no other system that limits it."""
        return {}

    def prepare(self, _connection: Connection, _batch: Sequence[Received], /) -> None:
        """Do nothing: this service calls no other system."""

    def decide(self, tx: Connection, batch: Sequence[Received], _prepared: None, /) -> BatchResult:
        """Merge the payment and the reservation into each order, write the orders that changed, and emit every order.

        Records of unknown orders, and records that the payment or the reservation contradicts, are rejected. If a
        changed order was settled before, the cache may hold it: its key is barred before the commit, so that no reader
        can fill the cache with the old row.
        """
        ids = sorted({received.order_id for received in batch})
        rows = [_LockedOrder(*row) for row in tx.execute(SQL["lock_orders_with_payment_and_stock"], {"ids": ids})]
        recorded = {row.order_id: row for row in rows}
        updates, last, reject = _updates(batch, recorded)
        changes = [_change(recorded[order_id], update) for order_id, update in sorted(updates.items())]
        changed = [change for change in changes if change.changed]
        if changed:
            tx.execute(ORDERS["update_orders"], written([change.after for change in changed]))
        if late := [change.before.order_id for change in changed if settled(change.before.state.status)]:
            self._cache.bar(late)
        return BatchResult(
            emit=[Outgoing(event, last[change.before.order_id]) for change in changes for event in _events(change)],
            reject=reject,
            after_commit=self._deletion([change.before.order_id for change in changed]),
            summary=MERGE,
            cleanup=self._deletes if changed else None,
        )

    def _flush_deletes(self, _connection: Connection) -> bool:
        """Retry the deletes of cached orders to which Redis did not answer. The cache keeps the list."""
        self._cache.delete(())
        return False

    def _deletion(self, ids: list[str]) -> Callable[[], None]:
        """Return the function that deletes these orders from the cache."""

        def delete() -> None:
            if ids:
                self._cache.delete(ids)

        return delete


def _updates(
    batch: Sequence[Received], recorded: dict[str, _LockedOrder]
) -> tuple[dict[str, FactUpdate], dict[str, Received], list[Rejected]]:
    """Return the update of each order, the last record that caused one, and the records that are rejected."""
    updates: dict[str, FactUpdate] = {}
    last: dict[str, Received] = {}
    reject: list[Rejected] = []
    for received in batch:
        order_id, event_type = received.order_id, received.event.type
        order = recorded.get(order_id)
        if order is None:
            reject.append(Rejected(received, "UNKNOWN_ORDER", order_id))
        elif order.contradicts(event_type):
            reject.append(Rejected(received, "NOT_DECIDED", f"{event_type}, but the {order.state_for(event_type)}"))
        else:
            update = order.update_for(event_type)
            updates[order_id] = fold(updates[order_id], update) if order_id in updates else update
            last[order_id] = received
    return updates, last, reject


def _change(row: _LockedOrder, update: FactUpdate) -> _Change:
    order = row.order()
    state = apply(order.state, update)
    abort = aborts(order.state, state, update)
    return _Change(order, order.with_state(state, row.now, abort=abort), abort)


def _events(change: _Change) -> list[Event[Payload]]:
    """Return order.updated, also if the order did not change, and order.aborted if the order must be compensated."""
    updated = order_updated(change.after)
    return [updated, order_aborted(change.after)] if change.abort else [updated]
