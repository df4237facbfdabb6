"""Group commit (P1): orders that arrive together are committed together, and answered only then.

One statement is one transaction: orders, items and outbox rows stand or fall together. A bad order never fails its
neighbours, and a group whose COMMIT got no answer is repeated with the same ids, which changes nothing where it had
been committed. An idempotency key commits with its order (P10): whoever comes second, in whichever gateway, waits for
the first at the unique index and is answered with its order.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import psycopg
from msgspec import Struct

from orderstream.api_gateway.gathering import Asked, Gathering, TryAgainError
from orderstream.api_gateway.idempotency import IdempotencyKey
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

WAITING_LINES_MAX = 40_000
"""Lines of the orders that wait: what bounds the memory that a queue of large orders takes, to some 20 MB."""

SQL = load("orderstream.api_gateway")


class NewOrder(Struct, frozen=True):
    """An order to commit. Postgres gives it its time: its row's created_at, which is its event's occurredAt."""

    created: OrderCreated
    carrier: Carrier
    key: IdempotencyKey | None = None


class Stored(Struct, frozen=True):
    """The answer to a new order: the order that is durable, which another request brought if it is `replayed`."""

    order_id: str
    replayed: bool = False


class _Row(Struct, frozen=True, omit_defaults=True):
    """One element of what `accept_orders` takes: an order, its items, and its row in the outbox."""

    id: str
    user_id: str
    amount: Decimal
    currency: str
    items: tuple[Item, ...]
    topic: str
    event_id: str
    value_before_time: str
    value_after_time: str
    traceparent: str | None
    tracestate: str | None
    idempotency_key: str | None = None
    request_hash: str | None = None


_encode = msgspec.json.Encoder().encode

_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_NO_TIME_JSON = _encode(_NO_TIME).decode()


class RefusedError(Exception):
    """Postgres cannot store this very order, however often it is asked."""


class KeyReusedError(Exception):
    """The idempotency key belongs to an order that is not this one."""


class Writer(Gathering[NewOrder, Stored]):
    """Commits orders. `ask` with the order's id: the answer means that an order is durable, and says which.

    Raises RefusedError or KeyReusedError. While Postgres is away nothing is answered; whoever asks has to bound their
    own waiting.
    """

    def __init__(self, session: Session, *, waiting_limit: int) -> None:
        super().__init__(
            self._commit,
            batch_limit=GROUP_LINES_MAX,
            waiting_limit=waiting_limit,
            weigh=_lines,
            weight_limit=WAITING_LINES_MAX,
        )
        self._session = session

    async def _commit(self, group: Sequence[Asked[NewOrder, Stored]]) -> None:
        try:
            rows = await self._session.execute(SQL["accept_orders"], _parameters([asked.item for asked in group]))
        except (psycopg.Error, ValueError) as error:
            await self._isolate(group, error)
            return
        metrics.COMMITTED_ORDERS.observe(len(group))
        won = set(rows[0][0] or ()) if rows else set()
        beaten: list[tuple[Asked[NewOrder, Stored], IdempotencyKey]] = []
        for asked in group:
            order_id, key = asked.item.created.order_id, asked.item.key
            if key is None or order_id in won:
                asked.answer(Stored(order_id))
            else:
                beaten.append((asked, key))
        if beaten:
            await self._replay(beaten)

    async def _replay(self, beaten: Sequence[tuple[Asked[NewOrder, Stored], IdempotencyKey]]) -> None:
        """Answer those whose key was taken with the order that has it: maybe their own, by an earlier attempt.

        Whoever finds no order, because it was removed meanwhile, tries again.
        """
        try:
            rows = await self._session.execute(SQL["orders_of_keys"], {"keys": [key.key for _, key in beaten]})
        except psycopg.Error as error:
            raise TryAgainError from error
        orders = {key: (order_id, request_hash) for key, order_id, request_hash in rows}
        for asked, key in beaten:
            order_id, request_hash = orders.get(key.key, (None, None))
            if order_id is not None and request_hash == key.request_hash:
                asked.answer(Stored(order_id, replayed=order_id != asked.item.created.order_id))
            elif order_id is not None:
                asked.fail(KeyReusedError(order_id))
        if any(asked.waited_for for asked, _ in beaten):
            raise TryAgainError("the order of a key is gone")

    async def _isolate(self, group: Sequence[Asked[NewOrder, Stored]], error: psycopg.Error | ValueError) -> None:
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
    if any(order.key for order in orders):
        orders = sorted(orders, key=lambda order: (order.key is None, order.key.key if order.key else ""))
    return {"orders": _encode([_row(order) for order in orders]).decode(), "channel": outbox.CHANNEL}


def _row(order: NewOrder) -> _Row:
    created = order.created
    event = events.build(created, _NO_TIME)
    # The envelope comes before the payload, so the first match is occurredAt, whatever the client sent.
    before_time, _, after_time = _encode(event).decode().partition(_NO_TIME_JSON)
    traceparent, tracestate = order.carrier
    return _Row(
        id=created.order_id,
        user_id=created.user_id,
        amount=created.amount,
        currency=created.currency,
        items=created.items,
        topic=events.topic(event.type),
        event_id=event.id,
        value_before_time=before_time,
        value_after_time=after_time,
        traceparent=traceparent,
        tracestate=tracestate,
        idempotency_key=None if order.key is None else order.key.key,
        request_hash=None if order.key is None else "\\x" + order.key.request_hash.hex(),
    )
