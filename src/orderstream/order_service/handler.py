"""Turns the results of payment and stock into the state of orders, and commands the undoing of those that failed.

Facts merge and the status is derived (domain/order.py); this module reads, writes and tells. It keeps P4 to P8.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from msgspec import Struct

from orderstream.cache import CacheInvalidator
from orderstream.domain.events import (
    Event,
    InventoryFailed,
    InventoryReleased,
    InventoryReserved,
    Payload,
    PaymentAuthorized,
    PaymentFailed,
    PaymentVoided,
    order_aborted,
    order_updated,
    topic,
)
from orderstream.domain.order import Facts, News, Order, aborts, apply, fold, settled
from orderstream.kafka.envelope import Received
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import SQL, locked
from orderstream.postgres.orders import changes as written
from orderstream.worker.handler import Decision, Outgoing, Rejected, Timer

FORGET_OWED_SECONDS = 1.0


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
    topics: tuple[str, ...] = (
        topic("payment.authorized"),
        topic("payment.failed"),
        topic("payment.voided"),
        topic("inventory.reserved"),
        topic("inventory.failed"),
        topic("inventory.released"),
    )
    emits: tuple[str, ...] = ("order.updated", "order.aborted")

    def __init__(self, cache: CacheInvalidator, timers: Sequence[Timer]) -> None:
        self._cache = cache
        self.timers = (*timers, Timer("forget_owed", FORGET_OWED_SECONDS, self._forget_owed))

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
        orders, now = locked(tx.execute(SQL["lock_orders"], {"ids": sorted(news)}))
        changes = [_change(order, news[order_id], now) for order_id, order in orders.items() if now]
        changed = [one for one in changes if one.changed]
        if changed:
            tx.execute(SQL["update_orders"], written([one.after for one in changed]))
        if late := [one.before.order_id for one in changed if settled(one.before.state.status)]:
            self._cache.bar(late)
        return Decision(
            emit=[Outgoing(event, last[one.before.order_id]) for one in changes for event in _events(one)],
            reject=[Rejected(one, "UNKNOWN_ORDER", one.order_id) for one in batch if one.order_id not in orders],
            after_commit=self._forget([one.before.order_id for one in changed]),
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


def _change(order: Order, news: News, now: datetime) -> _Change:
    state = apply(order.state, news)
    abort = aborts(order.state, state, news)
    return _Change(order, order.moved(state, now, abort=abort), abort)


def _events(change: _Change) -> list[Event[Payload]]:
    """Return the order's row as an event, whether it changed or not, and the abort if there is one."""
    updated = order_updated(change.after)
    return [updated, order_aborted(change.after)] if change.abort else [updated]
