"""Cancels orders (P5, P6, P8): one transaction per batch locks the rows, lets the domain decide, and writes the result.

The transaction also appends `order.aborted`, which starts the compensation. The row lock decides every race. A settled
order may be cached, so the canceller bars it in the cache until the change is committed. Cancelling an order again
changes nothing, so a transaction whose COMMIT got no answer is simply repeated.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Self

import psycopg
from msgspec import Struct

from orderstream.api_gateway.batcher import Batcher, PendingCall, TryAgainError
from orderstream.api_gateway.orders.reader import OrderDocument, read_documents
from orderstream.api_gateway.session import Session
from orderstream.cache import AsyncCache
from orderstream.domain.events import order_aborted, order_updated
from orderstream.domain.order import Order, OrderState, cancel, settled
from orderstream.http_server.conditions import NO_CONDITION, Condition, entity_tag
from orderstream.postgres import outbox
from orderstream.postgres.connect import AsyncConnection
from orderstream.postgres.orders import SQL, changes, locked
from orderstream.postgres.outbox import OutboxRow
from orderstream.postgres.sql import load
from orderstream.telemetry import databases, logs
from orderstream.telemetry.tracing import NO_SPANS, NO_TRACE, NO_TRACER, Spans, TraceContext, Tracer, trace_id

GATEWAY_SQL = load("orderstream.api_gateway.orders")
BATCH_LIMIT = 50
"""Orders cancelled in one transaction. Their rows stay locked until the last one is written."""


class Cancellation(Struct):
    """An order to cancel, the trace context of the first request for it, and the request's condition.

    `was_allowed` means that an earlier attempt found the condition true. The COMMIT of that attempt may have got no
    answer.
    """

    order_id: str
    trace_context: TraceContext
    condition: Condition = NO_CONDITION
    was_allowed: bool = False

    @property
    def key(self) -> str:
        """The batch key. Requests for the same order with the same condition share one answer."""
        return self.order_id if self.condition is NO_CONDITION else f"{self.order_id} {self.condition}"

    def allows(self, state: OrderState) -> bool:
        """Return whether the condition allows the cancellation, or whether an earlier attempt has done it."""
        if self.was_allowed and state.status == "CANCELLED":
            return True
        return self.condition.allows_change(entity_tag(state.version))


class Cancelled(Struct, frozen=True):
    """A cancelled order, and the trace context of the request that placed it, if any request of the batch is recorded.

    The document is None if there is no such order.
    """

    document: OrderDocument | None
    placed_by: TraceContext = NO_TRACE


class FailedError(Exception):
    """The order is FAILED. This status is final."""


class PreconditionFailedError(Exception):
    """The request's condition excludes the current version of the order."""


Batch = Sequence[PendingCall[Cancellation, Cancelled]]
Refusal = FailedError | PreconditionFailedError


class Canceller:
    """Cancels orders in batches. Used as a context manager."""

    def __init__(self, session: Session, cache: AsyncCache, *, waiting_limit: int, tracer: Tracer = NO_TRACER) -> None:
        self._session = session
        self._cache = cache
        self._tracer = tracer
        self._update = session.operation(databases.summary(("UPDATE", "orders"), ("INSERT", "outbox")))
        self._batcher = Batcher(self._cancel_batch, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)

    async def __aenter__(self) -> Self:
        await self._batcher.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._batcher.__aexit__(*error)

    def cancel(self, cancellation: Cancellation) -> asyncio.Future[Cancelled]:
        """Cancel an order. The future returns the order as it is then.

        The call raises QueueFullError. The future raises FailedError or PreconditionFailedError. While Postgres is
        down there is no answer. The caller must limit its own wait.
        """
        return self._batcher.submit(cancellation.key, cancellation)

    async def _cancel_batch(self, batch: Batch) -> None:
        placed_by: dict[str, TraceContext] = {}
        try:
            with self._spans(batch) if self._tracer.open_requests else NO_SPANS:
                async with self._session.transaction() as tx:
                    refusals, documents = await self._decide(tx, [call.item for call in batch])
                    if self._tracer.open_requests:
                        placed_by = await _placed_by(tx, list(documents))
        except psycopg.Error as error:
            order_id, trace = batch[0].item.order_id, trace_id(batch[0].item.trace_context)
            text = str(error)
            logs.get().error(
                "cancel_refused_by_postgres", orders=len(batch), order_id=order_id, trace_id=trace, error=text
            )
            raise TryAgainError from error
        # Delete all of them, changed or not. An earlier attempt whose COMMIT got no answer may have barred them.
        await self._cache.delete(list(documents))
        for call in batch:
            refusal = refusals.get(call.item.key)
            if refusal is not None:
                call.fail(refusal)
            else:
                order_id = call.item.order_id
                call.answer(Cancelled(documents.get(order_id), placed_by.get(order_id, NO_TRACE)))

    def _spans(self, batch: Batch) -> Spans:
        """Begin the span of the transaction in the trace of each recorded cancel."""
        return self._tracer.shared(self._update, (call.item.trace_context for call in batch), len(batch))

    async def _decide(
        self, tx: AsyncConnection, cancellations: Sequence[Cancellation]
    ) -> tuple[dict[str, Refusal], dict[str, OrderDocument]]:
        """Return the refusals by cancellation key, and the cancelled orders by order id."""
        ids = list(dict.fromkeys(cancellation.order_id for cancellation in cancellations))
        cursor = await tx.execute(SQL["lock_orders"], {"ids": ids})
        before, now = locked(await cursor.fetchall())
        after: dict[str, Order] = {}
        contexts: dict[str, TraceContext] = {}
        refusals: dict[str, Refusal] = {}
        for cancellation in cancellations:
            order_id = cancellation.order_id
            order = after.get(order_id) or before.get(order_id)
            if order is None or now is None:
                continue
            state = cancel(order.state)
            if state is None:
                refusals[cancellation.key] = FailedError(order_id)
            elif not cancellation.allows(order.state):
                refusals[cancellation.key] = PreconditionFailedError(order_id)
            else:
                cancellation.was_allowed = True
                after[order_id] = order.with_state(state, now, abort=True)
                contexts.setdefault(order_id, cancellation.trace_context)
        changed = [order for order in after.values() if order is not before[order.order_id]]
        await self._cache.bar([order.order_id for order in changed if settled(before[order.order_id].state.status)])
        await _write(tx, changed, contexts)
        return refusals, await read_documents(tx, list(after))


async def _placed_by(tx: AsyncConnection, ids: Sequence[str]) -> dict[str, TraceContext]:
    """Return the trace contexts of the requests that placed these orders."""
    if not ids:
        return {}
    cursor = await tx.execute(GATEWAY_SQL["traces_of"], {"ids": ids})
    return {order_id: TraceContext(*context) for order_id, *context in await cursor.fetchall()}


async def _write(tx: AsyncConnection, orders: Sequence[Order], contexts: Mapping[str, TraceContext]) -> None:
    """Write cancelled orders, append their events to the outbox, and wake the relay."""
    if not orders:
        return
    await tx.execute(SQL["update_orders"], changes(orders))
    rows = [
        OutboxRow(event(order), contexts[order.order_id])
        for order in orders
        for event in (order_updated, order_aborted)
    ]
    await tx.execute(outbox.SQL["append_to_outbox"], outbox.parameters(rows))
    await tx.execute(outbox.SQL["wake_relay"])
