"""Group commit (P1): orders that arrive together are committed together, and answered only then.

One statement is one transaction: orders, items and outbox rows stand or fall together. A bad order never fails its
neighbours, and a group whose COMMIT got no answer is repeated with the same ids, which changes nothing where it had
been committed.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from uuid import UUID

import msgspec
import psycopg
from msgspec import Struct

from orderstream.api_gateway.gathering import Asked, Gathering, TryAgainError
from orderstream.api_gateway.session import Session
from orderstream.domain import events
from orderstream.domain.events import Item, OrderCreated
from orderstream.postgres import outbox
from orderstream.postgres.connect import is_fatal
from orderstream.postgres.sql import load
from orderstream.telemetry import logs, metrics
from orderstream.telemetry.tracing import Carrier

GROUP_LINES_MAX = 2_000
"""Lines of the orders in one group: what keeps a group of large orders within the time that Postgres has for it."""

SQL = load("orderstream.api_gateway")


class NewOrder(Struct, frozen=True):
    """An order to commit. `accepted_at` becomes both its row's created_at and its event's occurredAt."""

    created: OrderCreated
    accepted_at: datetime
    carrier: Carrier


class _Row(Struct, frozen=True):
    """One element of what `accept_orders` takes: an order, its items, and its row in the outbox."""

    id: str
    user_id: str
    amount: Decimal
    currency: str
    items: tuple[Item, ...]
    accepted_at: datetime
    topic: str
    event_id: UUID
    value: str
    traceparent: str | None
    tracestate: str | None


_encode = msgspec.json.Encoder().encode


class RefusedError(Exception):
    """Postgres cannot store this very order, however often it is asked."""


class Writer(Gathering[NewOrder, None]):
    """Commits orders. `ask` with the order's id: the answer None means that the order is durable.

    Raises RefusedError. While Postgres is away nothing is answered; whoever asks has to bound their own waiting.
    """

    def __init__(self, session: Session, *, waiting_limit: int) -> None:
        super().__init__(self._commit, batch_limit=GROUP_LINES_MAX, waiting_limit=waiting_limit, weigh=_lines)
        self._session = session

    async def _commit(self, group: Sequence[Asked[NewOrder, None]]) -> None:
        try:
            await self._session.execute(SQL["accept_orders"], _parameters([asked.item for asked in group]))
        except (psycopg.Error, ValueError) as error:
            await self._isolate(group, error)
            return
        metrics.COMMITTED_ORDERS.observe(len(group))
        for asked in group:
            asked.answer(None)

    async def _isolate(self, group: Sequence[Asked[NewOrder, None]], error: psycopg.Error | ValueError) -> None:
        """Halve a refused group until the order that it was refused for stands alone."""
        if is_fatal(error):
            logs.get().error("postgres_refuses_every_order", error=str(error))
            raise TryAgainError from error
        if len(group) == 1:
            order_id = group[0].item.created.order_id
            logs.get().error("order_refused_by_postgres", order_id=order_id, error=str(error))
            group[0].fail(RefusedError(str(error)))
            return
        middle = len(group) // 2
        await self._commit(group[:middle])
        await self._commit(group[middle:])


def _lines(order: NewOrder) -> int:
    return len(order.created.items)


def _parameters(orders: Sequence[NewOrder]) -> dict[str, object]:
    """Return what `accept_orders` takes."""
    return {"orders": _encode([_row(order) for order in orders]).decode(), "channel": outbox.CHANNEL}


def _row(order: NewOrder) -> _Row:
    created = order.created
    event = events.build(created, order.accepted_at)
    traceparent, tracestate = order.carrier
    return _Row(
        id=created.order_id,
        user_id=created.user_id,
        amount=created.amount,
        currency=created.currency,
        items=created.items,
        accepted_at=order.accepted_at,
        topic=events.topic(event.type),
        event_id=event.id,
        value=_encode(event).decode(),
        traceparent=traceparent,
        tracestate=tracestate,
    )
