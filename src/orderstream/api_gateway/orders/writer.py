"""Group commit (P1): orders that arrive together are committed together. Clients get their answers after the commit.

One statement is one transaction, so orders, items and outbox rows are committed together or not at all. A bad order
never fails the other orders of its group. If the COMMIT of a group got no answer, the writer repeats the group with the
same order ids, and Postgres skips the orders that it already has. An idempotency key is committed with its order (P10):
the second order with a key, in any gateway, waits for the first at the unique index, and its client gets the first
order.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Self

import msgspec
import psycopg
from msgspec import Raw, Struct
from psycopg.errors import CheckViolation, NotNullViolation, UniqueViolation
from psycopg.rows import args_row

from orderstream.api_gateway.batcher import Batcher, PendingCall, TryAgainError
from orderstream.api_gateway.orders.idempotency import IdempotencyKey
from orderstream.api_gateway.orders.key_owners import find_key_owners
from orderstream.api_gateway.session import Session
from orderstream.domain import events
from orderstream.domain.events import Event, OrderCreated
from orderstream.postgres import outbox
from orderstream.postgres.faults import is_bad_value, is_fatal, is_unknown
from orderstream.postgres.sql import load
from orderstream.process.gathering import Gathering
from orderstream.telemetry import logs, metrics
from orderstream.telemetry.tracing import NO_SPANS, NO_TRACER, Spans, TraceContext, Tracer, trace_id

GROUP_LINES_MAX = 2_000
"""Order lines in one group. The limit keeps a group of large orders within Postgres's time budget."""

WAITING_LINES_MAX = 40_000
"""Order lines of the waiting orders. The limit bounds the memory of the queue to about 20 MB."""

GATHER_SECONDS = 0.004
GATHERING = Gathering(from_items=8, seconds_per_item=0.0002, longest_seconds=GATHER_SECONDS)
"""After a group of 8 orders or more, the writer gathers orders before it commits the next group."""

FAULTS_MAX = 24
"""Errors in one attempt at a group that no order caused. Halving finds two bad orders among 2,000 within 24 errors."""

SQL = load("orderstream.api_gateway.orders")


class NewOrder(Struct, frozen=True):
    """An order to commit. Postgres sets its created_at, which is also the occurredAt of its event."""

    created: OrderCreated
    trace_context: TraceContext
    key: IdempotencyKey | None = None


class Stored(Struct, frozen=True):
    """The id of a committed order. `replayed` means that an earlier request with the same key placed the order."""

    order_id: str
    replayed: bool = False


class _IncomingOrder(Struct, frozen=True, omit_defaults=True):
    """One element of the parameter of `accept_orders`: an order as the payload of its event, and its other columns."""

    payload: OrderCreated
    event_id: str
    traceparent: str | None
    tracestate: str | None
    idempotency_key: str | None = None
    request_hash: str | None = None


class _AcceptedGroup(Struct, frozen=True):
    """The row of `accept_orders`: the number of orders it was given, and the accepted orders that have a key."""

    orders: int
    with_keys: Sequence[str]


def _accepted_group(*columns: Any) -> _AcceptedGroup | None:
    """Return the row of `accept_orders`, or None for the row of another statement."""
    match columns:
        case (int(orders), list() | None as with_keys, _):
            return _AcceptedGroup(orders, with_keys or ())
        case _:
            return None


_encode = msgspec.json.Encoder().encode

_TOPIC = events.topic_of("order.created")


def _envelope() -> str:
    """Return the JSON of order.created with `%s` for its id, time, order id and payload, in this order."""
    no_time = datetime(1970, 1, 1, tzinfo=UTC)
    event = Event(
        type="order.created",
        version=events.VERSION,
        id="%s",
        occurred_at=no_time,
        correlation_id="%s",
        payload=Raw(b"%s"),  # type: ignore[type-var]
    )
    return _encode(event).decode().replace(_encode(no_time).decode(), "%s")


_ENVELOPE = _envelope()


class RefusedError(Exception):
    """Postgres cannot store this order. Every retry would fail too."""


class KeyReusedError(Exception):
    """The idempotency key belongs to a different order."""


Group = Sequence[PendingCall[NewOrder, Stored]]


class Writer:
    """Commits orders in groups. Used as a context manager. Its length is the number of orders that wait."""

    def __init__(self, session: Session, *, waiting_limit: int, tracer: Tracer = NO_TRACER) -> None:
        self._session = session
        self._tracer = tracer
        self._insert = session.operation("INSERT orders order_items outbox", "INSERT")
        self._batcher = Batcher(
            self._store_group,
            batch_limit=GROUP_LINES_MAX,
            waiting_limit=waiting_limit,
            size_of=_lines,
            waiting_size_limit=WAITING_LINES_MAX,
            gathering=GATHERING,
        )
        self._faults = 0

    async def __aenter__(self) -> Self:
        await self._batcher.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._batcher.__aexit__(*error)

    def __len__(self) -> int:
        return len(self._batcher)

    def store(self, order: NewOrder) -> asyncio.Future[Stored]:
        """Commit an order. The future returns when an order is durable, and says which one.

        The call raises QueueFullError. The future raises RefusedError or KeyReusedError. While Postgres is down there
        is no answer. The caller must limit its own wait.
        """
        return self._batcher.submit(order.created.order_id, order)

    async def _store_group(self, group: Group) -> None:
        self._faults = 0
        await self._commit(group)
        if any(call.has_waiters for call in group):
            raise TryAgainError("Postgres stored only a part of the group")

    async def _commit(self, group: Group, *, doubted: bool = False) -> None:
        """Commit a group and answer its calls. Calls whose order failed through no fault of its own get no answer.

        `doubted` means that the group is one order, and that Postgres refused a value of this order on another
        connection.
        """
        try:
            parameters = _parameters([call.item for call in group])
            with self._spans(group) if self._tracer.open_requests else NO_SPANS:
                rows = await self._session.execute(SQL["accept_orders"], parameters, args_row(_accepted_group))
        except (psycopg.Error, ValueError) as error:
            if isinstance(error, UniqueViolation) and error.diag.constraint_name == "orders_pkey":
                raise TryAgainError("an earlier attempt at the group has committed meanwhile") from error
            await self._isolate(group, error, doubted=doubted)
            return
        except TryAgainError as error:
            if not isinstance(error.__cause__, psycopg.Error) or not is_unknown(error.__cause__):
                raise
            # A trigger or a defect may have raised the error for one order. The other orders must not wait for it.
            await self._isolate(group, error.__cause__, doubted=doubted)
            return
        accepted = rows[0] if len(rows) == 1 else None
        if accepted is None or accepted.orders != len(group):
            # A 201 is worth this check: a pooled connection may run another statement than the intended one.
            logs.get().error("another_statement_ran", orders=len(group))
            await self._session.renew()
            return
        metrics.COMMITTED_ORDERS.observe(len(group))
        with_keys = set(accepted.with_keys)
        taken: list[tuple[PendingCall[NewOrder, Stored], IdempotencyKey]] = []
        for call in group:
            order_id, key = call.item.created.order_id, call.item.key
            if key is None or order_id in with_keys:
                call.answer(Stored(order_id))
            else:
                taken.append((call, key))
        if taken:
            await self._replay(taken)

    def _spans(self, group: Group) -> Spans:
        """Begin the span of the commit in the trace of each recorded order."""
        return self._tracer.shared(self._insert, (call.item.trace_context for call in group), len(group))

    async def _replay(self, taken: Sequence[tuple[PendingCall[NewOrder, Stored], IdempotencyKey]]) -> None:
        """Answer the calls whose key is taken with the order that owns the key.

        An earlier attempt at the same order may be the owner. If the owner has been deleted since, the call gets no
        answer and is retried.
        """
        owners = await find_key_owners(self._session, (key.key for _, key in taken))
        for call, key in taken:
            owner = owners.get(key.key)
            if owner is None:
                continue
            if owner.request_hash == key.request_hash:
                call.answer(Stored(owner.order_id, replayed=owner.order_id != call.item.created.order_id))
            else:
                call.fail(KeyReusedError(owner.order_id))

    async def _isolate(self, group: Group, error: psycopg.Error | ValueError, *, doubted: bool) -> None:
        """Halve a refused group until the order that caused the error is alone.

        An order is refused only for its values, and only if two connections agree: a pooled connection may run another
        statement than the intended one. After any other error the order is retried on a new connection.
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
            await self._commit(group[:middle])
            await self._commit(group[middle:])
        elif blamed and doubted:
            order_id = group[0].item.created.order_id
            trace = trace_id(group[0].item.trace_context)
            logs.get().error("order_refused_by_postgres", order_id=order_id, trace_id=trace, error=str(error))
            group[0].fail(RefusedError(str(error)))
        elif blamed:
            await self._session.renew()
            await self._commit(group, doubted=True)


def _blames_the_order(error: Exception) -> bool:
    """Return whether a value of the order cannot be stored. ValueError means that it could not be sent at all."""
    if isinstance(error, UniqueViolation):
        return error.diag.constraint_name == "order_items_pkey"
    return is_bad_value(error) or isinstance(error, ValueError | CheckViolation | NotNullViolation)


def _lines(order: NewOrder) -> int:
    return len(order.created.items)


def _parameters(orders: Sequence[NewOrder]) -> dict[str, object]:
    """Return the parameters of `accept_orders`. Orders with keys come first, sorted by key."""
    if any(order.key for order in orders):
        orders = sorted(orders, key=lambda order: (order.key is None, order.key.key if order.key else ""))
    return {
        "orders": _encode([_incoming_order(order) for order in orders]).decode(),
        "topic": _TOPIC,
        "envelope": _ENVELOPE,
        "channel": outbox.CHANNEL,
    }


def _incoming_order(order: NewOrder) -> _IncomingOrder:
    traceparent, tracestate = order.trace_context
    return _IncomingOrder(
        payload=order.created,
        event_id=events.id_of(order.created),
        traceparent=traceparent,
        tracestate=tracestate,
        idempotency_key=None if order.key is None else order.key.key,
        request_hash=None if order.key is None else "\\x" + order.key.request_hash.hex(),
    )
