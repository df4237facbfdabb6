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
from psycopg.errors import CheckViolation, NotNullViolation, UniqueViolation

from orderstream.api_gateway.batcher import Asked, Gathering, TryAgainError
from orderstream.api_gateway.orders.idempotency import IdempotencyKey
from orderstream.api_gateway.session import Session
from orderstream.domain import events
from orderstream.domain.events import Item, OrderCreated
from orderstream.postgres import outbox
from orderstream.postgres.faults import is_bad_value, is_fatal, is_unknown
from orderstream.postgres.sql import load
from orderstream.telemetry import logs, metrics
from orderstream.telemetry.tracing import Carrier

GROUP_LINES_MAX = 2_000
"""Lines of the orders in one group: what keeps a group of large orders within the time that Postgres has for it."""

WAITING_LINES_MAX = 40_000
"""Lines of the orders that wait: what bounds the memory that a queue of large orders takes, to some 20 MB."""

FAULTS_MAX = 24
"""Errors in one attempt at a group that blame no order. Halving finds two orders of 2,000 within as many."""

SQL = load("orderstream.api_gateway.orders")


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


Group = Sequence[Asked[NewOrder, Stored]]


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
        self._faults = 0

    async def _commit(self, group: Group) -> None:
        self._faults = 0
        await self._store(group)
        if any(asked.waited_for for asked in group):
            raise TryAgainError("Postgres stored only others")

    async def _store(self, group: Group, *, doubted: bool = False) -> None:
        """Commit a group and answer it, but for orders that Postgres does not store through no fault of their own.

        `doubted` says that Postgres has refused a value of this group, which is one order, on another connection.
        """
        try:
            rows = await self._session.execute(SQL["accept_orders"], _parameters([asked.item for asked in group]))
        except (psycopg.Error, ValueError) as error:
            await self._isolate(group, error, doubted=doubted)
            return
        except TryAgainError as error:
            if not isinstance(error.__cause__, psycopg.Error) or not is_unknown(error.__cause__):
                raise
            # A trigger or a defect may have raised it for one order: the others are not to wait for that one.
            await self._isolate(group, error.__cause__, doubted=doubted)
            return
        if [row[0] for row in rows] != [len(group)]:
            # A 201 is worth a check of its own: a pooled connection may run another statement than was meant.
            logs.get().error("another_statement_ran", orders=len(group))
            await self._session.renew()
            return
        metrics.COMMITTED_ORDERS.observe(len(group))
        won = set(rows[0][1] or ())
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

        An order whose twin was removed meanwhile stays unanswered, and is tried again.
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

    async def _isolate(self, group: Group, error: psycopg.Error | ValueError, *, doubted: bool) -> None:
        """Halve a refused group until the order that it was refused for stands alone.

        An order is refused for its values alone, and only when two connections agree: a pooled connection may run
        another statement than was meant. After any other error the order is tried again, on a new connection.
        """
        blamed = _blames_the_order(error)
        if not blamed:
            self._faults += 1
            if is_fatal(error):
                logs.get().error("postgres_refuses_every_order", error=str(error))
                raise TryAgainError from error
            state = error.sqlstate if isinstance(error, psycopg.Error) else None
            logs.get().error("postgres_refuses_orders", orders=len(group), sqlstate=state, error=str(error))
            if self._faults > FAULTS_MAX:
                raise TryAgainError from error
        if len(group) > 1:
            middle = len(group) // 2
            await self._store(group[:middle])
            await self._store(group[middle:])
        elif blamed and doubted:
            order_id = group[0].item.created.order_id
            logs.get().error("order_refused_by_postgres", order_id=order_id, error=str(error))
            group[0].fail(RefusedError(str(error)))
        elif blamed:
            await self._session.renew()
            await self._store(group, doubted=True)


def _blames_the_order(error: Exception) -> bool:
    """Say whether a value of the order cannot be stored. ValueError is raised here, before Postgres is asked."""
    if isinstance(error, UniqueViolation):
        return error.diag.constraint_name == "order_items_pkey"
    return is_bad_value(error) or isinstance(error, ValueError | CheckViolation | NotNullViolation)


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
    # The envelope comes before the payload, so the first match is occurredAt and never a value of the client.
    before_time, _, after_time = _encode(event).decode().partition(_NO_TIME_JSON)
    traceparent, tracestate = order.carrier
    return _Row(
        id=created.order_id,
        user_id=created.user_id,
        amount=created.amount,
        currency=created.currency,
        items=created.items,
        topic=events.topic_of(event.type),
        event_id=event.id,
        value_before_time=before_time,
        value_after_time=after_time,
        traceparent=traceparent,
        tracestate=tracestate,
        idempotency_key=None if order.key is None else order.key.key,
        request_hash=None if order.key is None else "\\x" + order.key.request_hash.hex(),
    )
