"""Turns the results of payment and stock into the state of orders, and commands the undoing of those that failed.

Facts merge and the status is derived (domain/order.py); this module reads, writes and tells. It keeps P4 to P8.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal

from msgspec import Struct

from orderstream.cache import CacheInvalidator
from orderstream.domain.events import (
    Decided,
    Event,
    InventoryFailed,
    InventoryReleased,
    InventoryReserved,
    OrderAborted,
    OrderUpdated,
    Payload,
    PaymentAuthorized,
    PaymentFailed,
    PaymentVoided,
    build,
    topic,
)
from orderstream.domain.order import Facts, News, OrderState, aborts, apply, fold, settled
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load
from orderstream.telemetry import metrics
from orderstream.worker.handler import Decision, Outgoing, Rejected, Timer

SQL = load("orderstream.order_service")
UNCOMPENSATED_METRIC_SECONDS = 5.0


class _Order(Struct, frozen=True):
    """A locked row of `orders`; `now` is the transaction's time."""

    order_id: str
    state: OrderState
    user_id: str
    amount: Decimal
    currency: str
    created_at: datetime
    updated_at: datetime
    aborted_at: datetime | None
    now: datetime


class _Change(Struct, frozen=True):
    """What a batch did to one order; `before` and `after` are the same object when it changed nothing."""

    order: _Order
    after: OrderState
    abort: bool

    @property
    def changed(self) -> bool:
        return self.after is not self.order.state or (self.abort and self.order.aborted_at is None)


class OrderHandler:
    """Merges batches of payment and inventory results."""

    group = "order-service"
    topics: tuple[str, ...] = (
        topic("payment.authorized"),
        topic("payment.failed"),
        topic("payment.voided"),
        topic("inventory.reserved"),
        topic("inventory.failed"),
        topic("inventory.released"),
    )
    emits: tuple[str, ...] = ("order.updated", "order.aborted")

    def __init__(self, cache: CacheInvalidator) -> None:
        self._cache = cache
        self.timers = (Timer("uncompensated", UNCOMPENSATED_METRIC_SECONDS, _measure_uncompensated),)

    def prepare(self, _connection: Connection, _batch: Sequence[Received], /) -> None:
        """Nothing to do outside the transaction."""

    def decide(self, tx: Connection, batch: Sequence[Received], _prepared: None, /) -> Decision:
        """Merge the news of every order, write the rows that changed, and tell of every order touched.

        Records of orders that do not exist are rejected. A changed row that was settled already may be cached: its key
        is barred before the commit, so that no reader can put the old row back.
        """
        news: dict[str, News] = {}
        last: dict[str, Received] = {}
        for received in batch:
            order_id, told = received.order_id, news_of(received.event)
            news[order_id] = fold(news[order_id], told) if order_id in news else told
            last[order_id] = received
        orders = self._lock(tx, sorted(news))
        changes = [_change(order, news[order.order_id]) for order in orders.values()]
        changed = [one for one in changes if one.changed]
        self._write(tx, changed)
        if late := [one.order.order_id for one in changed if settled(one.order.state.status)]:
            self._cache.bar(late)
        return Decision(
            emit=[Outgoing(event, last[one.order.order_id]) for one in changes for event in _events(one)],
            reject=[Rejected(one, "UNKNOWN_ORDER", one.order_id) for one in batch if one.order_id not in orders],
            after_commit=self._forget([one.order.order_id for one in changed]),
        )

    def _forget(self, ids: list[str]) -> Callable[[], None]:
        def forget() -> None:
            if ids:
                self._cache.delete(ids)

        return forget

    @staticmethod
    def _lock(tx: Connection, ids: list[str]) -> dict[str, _Order]:
        orders = {}
        for row in tx.execute(SQL["lock_orders"], {"ids": ids}):
            order_id, status, payment, stock, payment_at, stock_at, reason, version, *rest = row
            state = OrderState(status, Facts(payment, stock, payment_at, stock_at), reason, version)
            orders[order_id] = _Order(order_id, state, *rest)
        return orders

    @staticmethod
    def _write(tx: Connection, changes: Sequence[_Change]) -> None:
        if not changes:
            return
        states = [one.after for one in changes]
        tx.execute(
            SQL["update_orders"],
            {
                "ids": [one.order.order_id for one in changes],
                "statuses": [state.status for state in states],
                "payments": [state.facts.payment for state in states],
                "stocks": [state.facts.stock for state in states],
                "payments_at": [state.facts.payment_at for state in states],
                "stocks_at": [state.facts.stock_at for state in states],
                "reasons": [state.failure_reason for state in states],
                "versions": [state.version for state in states],
                "aborted": [one.abort for one in changes],
            },
        )


def news_of(event: Event[Payload]) -> News:
    """Return what an event says of its order."""
    payload, at = event.payload, event.occurred_at
    match payload:
        case PaymentAuthorized():
            return News(Facts(payment="authorized", payment_at=at))
        case PaymentFailed():
            return News(Facts(payment="failed", payment_at=at), payment_reason=payload.reason)
        case PaymentVoided():
            return News(Facts(payment="voided", payment_at=at), payment_reason=payload.reason)
        case InventoryReserved():
            return News(Facts(stock="reserved", stock_at=at))
        case InventoryFailed():
            return News(Facts(stock="failed", stock_at=at), stock_reason=payload.reason)
        case InventoryReleased():
            return News(Facts(stock="released", stock_at=at), stock_reason=payload.reason)
        case _:
            raise TypeError(f"{event.type} says nothing of an order's facts")


def _change(order: _Order, news: News) -> _Change:
    after = apply(order.state, news)
    return _Change(order, after, aborts(order.state, after, news))


def _events(change: _Change) -> list[Event[Payload]]:
    """Return the order's row as an event, whether it changed or not, and the abort if there is one."""
    order, state = change.order, change.after
    updated_at = order.now if change.changed else order.updated_at
    updated = OrderUpdated(
        order_id=order.order_id,
        user_id=order.user_id,
        amount=order.amount,
        currency=order.currency,
        status=state.status,
        failure_reason=state.failure_reason,
        payment=Decided(state=state.facts.payment, decided_at=state.facts.payment_at),
        stock=Decided(state=state.facts.stock, decided_at=state.facts.stock_at),
        version=state.version,
        created_at=order.created_at,
        updated_at=updated_at,
    )
    events: list[Event[Payload]] = [build(updated, updated_at)]
    if change.abort:
        abort = OrderAborted(order_id=order.order_id, status=state.status, reason=state.failure_reason)
        events.append(build(abort, order.aborted_at or order.now))
    return events


def _measure_uncompensated(connection: Connection) -> bool:
    row = connection.execute(SQL["oldest_uncompensated"]).fetchone()
    metrics.UNCOMPENSATED_OLDEST_SECONDS.set(row[0] if row else 0)
    return False
