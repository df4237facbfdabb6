"""Reads orders through the cache (P8, P11).

Cache misses that arrive together share one query, also for different orders. A read never joins a query that has
already begun: the query may have missed a change that the client already knows.
"""

import asyncio
import contextlib
from asyncio import Future
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Self, TypeVar, assert_never

import msgspec
import psycopg
from msgspec import Raw, Struct
from psycopg.rows import args_row

from orderstream.api_gateway.batcher import Batcher, PendingCall, QueueFullError, TryAgainError
from orderstream.api_gateway.schemas import ItemView, OrderView, PaymentView, StockView
from orderstream.api_gateway.session import Session
from orderstream.cache import AsyncCache, Entry, Fill, Lease, Lookup
from orderstream.domain.order import AnyReason, PaymentFact, Status, StockFact, settled
from orderstream.postgres.connect import AsyncConnection
from orderstream.postgres.sql import load
from orderstream.telemetry.tracing import NO_TRACER, Operation, TraceContext, Tracer, reason_of

BATCH_LIMIT = 200
LINES_PER_TURN_MAX = 5_000
"""Order lines decoded in one turn of the event loop. They take about 5 ms."""

SQL = load("orderstream.api_gateway.orders")

Outcome = Literal["HIT", "MISS", "BYPASS"]

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class OrderDocument(Struct, frozen=True):
    """An order as the JSON that the API returns, with the two values that the response head needs."""

    body: bytes
    version: int
    settled: bool


class _OrderRow(Struct, frozen=True):
    """A row of `read_orders`. The last three columns have one element for each order line."""

    order_id: str
    user_id: str
    amount: str
    currency: str
    status: Status
    failure_reason: AnyReason | None
    version: int
    created_at: datetime
    updated_at: datetime
    payment: PaymentFact
    payment_at: datetime | None
    stock: StockFact
    stock_at: datetime | None
    skus: Sequence[str] | None
    qtys: Sequence[int] | None
    prices: Sequence[str] | None


_order_row = args_row(_OrderRow)


class _Versioned(Struct):
    version: int


_decode_version = msgspec.json.Decoder(_Versioned).decode


class Reader:
    """Reads orders. Used as a context manager."""

    def __init__(self, session: Session, cache: AsyncCache, *, waiting_limit: int, tracer: Tracer = NO_TRACER) -> None:
        self._session = session
        self._cache = cache
        self._tracer = tracer
        self._select = session.operation("SELECT orders order_items", "SELECT")
        self._lookups = Batcher(self._look_up, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)
        self._queries = Batcher(self._query, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)
        self._fills = Batcher(self._fill, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)

    async def __aenter__(self) -> Self:
        for batcher in (self._lookups, self._queries, self._fills):
            await batcher.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        for batcher in (self._lookups, self._queries, self._fills):
            await batcher.__aexit__(*error)

    async def read(self, order_id: str, trace: TraceContext | None = None) -> tuple[OrderDocument | None, Outcome]:
        """Return an order, or None if there is no such order, and the outcome of the cache. Raises QueueFullError.

        `trace` is given if the request is recorded. Its spans include the wait for a batch.
        """
        found: Lookup = "unreachable"
        if not self._cache.is_bypassed:
            found = await self._traced(self._lookups.submit(order_id, order_id), self._cache.lookups, trace)
        match found:
            case Entry(body=body):
                if (cached := _cached(body)) is not None:
                    return cached, "HIT"
                return await self._query_one(order_id, trace), "BYPASS"
            case Lease():
                document = await self._query_one(order_id, trace)
                await self._use(found, order_id, document, trace)
                return document, "MISS"
            case "leased":
                return await self._query_one(order_id, trace), "MISS"
            case "barred" | "unreachable":
                return await self._query_one(order_id, trace), "BYPASS"
            case _:
                assert_never(found)

    def _query_one(self, order_id: str, trace: TraceContext | None) -> Future[OrderDocument | None]:
        return self._traced(self._queries.submit(order_id, order_id), self._select, trace)

    def _traced(self, future: Future[T], operation: Operation, trace: TraceContext | None) -> Future[T]:
        """Return the future of a step. If the request is recorded, the span of the step ends with the future."""
        if trace is not None and (span := self._tracer.call(operation, trace)) is not None:
            future.add_done_callback(lambda step: span.end(_failure(step)))
        return future

    async def _use(
        self, lease: Lease, order_id: str, document: OrderDocument | None, trace: TraceContext | None
    ) -> None:
        """Fill the cache if the order is settled. Otherwise give the lease back, without waiting for Redis."""
        body = document.body if document is not None and document.settled else b""
        with contextlib.suppress(QueueFullError):
            filled = self._fills.submit(order_id + lease.token, Fill(order_id, lease.token, body))
            self._traced(filled, self._cache.fills, trace)
            if body:
                await filled

    async def _look_up(self, batch: Sequence[PendingCall[str, Lookup]]) -> None:
        for call, found in zip(batch, await self._cache.look_up([call.item for call in batch]), strict=True):
            # Only one of the callers may hold the lease.
            holder = next((future for future in call.futures if not future.done()), None)
            if isinstance(found, Lease) and holder is not None:
                holder.set_result(found)
                call.answer("leased")
            else:
                call.answer(found)

    async def _query(self, batch: Sequence[PendingCall[str, OrderDocument | None]]) -> None:
        try:
            ids = [call.item for call in batch]
            async with self._session.reading(SQL["read_orders"], {"ids": ids}, _order_row) as cursor:
                documents = await _documents(cursor)
        except psycopg.Error as error:
            raise TryAgainError from error
        for call in batch:
            call.answer(documents.get(call.item))

    async def _fill(self, batch: Sequence[PendingCall[Fill, None]]) -> None:
        await self._cache.fill([call.item for call in batch])
        for call in batch:
            call.answer(None)


def _failure(step: Future[Any]) -> str | None:
    """Return why a step failed, for its span."""
    if step.cancelled():
        return "no result in time"
    error = step.exception()
    return None if error is None else reason_of(error)


async def read_documents(tx: AsyncConnection, ids: Sequence[str]) -> dict[str, OrderDocument]:
    """Read orders inside a transaction, without the cache."""
    if not ids:
        return {}
    return await _documents(await tx.cursor(row_factory=_order_row).execute(SQL["read_orders"], {"ids": ids}))


async def _documents(cursor: psycopg.AsyncCursor[_OrderRow]) -> dict[str, OrderDocument]:
    """Decode and encode one row after the other. After many order lines, other requests get a turn."""
    documents: dict[str, OrderDocument] = {}
    lines = 0
    async for row in cursor:
        lines += len(row.skus or ())
        if lines > LINES_PER_TURN_MAX:
            lines = 0
            await asyncio.sleep(0)
        documents[row.order_id] = _document(row)
    return documents


def _cached(body: bytes) -> OrderDocument | None:
    """Decode a cache entry. Return None if another program wrote it."""
    try:
        return OrderDocument(body, _decode_version(body).version, settled=True)
    except msgspec.DecodeError:
        return None


def _document(row: _OrderRow) -> OrderDocument:
    lines = zip(row.skus or (), row.qtys or (), row.prices or (), strict=True)
    view = OrderView(
        order_id=row.order_id,
        user_id=row.user_id,
        items=[ItemView(sku, qty, Raw(price.encode())) for sku, qty, price in lines],
        amount=Raw(row.amount.encode()),
        currency=row.currency,
        status=row.status,
        failure_reason=row.failure_reason,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
        payment=PaymentView(row.payment, row.payment_at),
        stock=StockView(row.stock, row.stock_at),
    )
    return OrderDocument(_encode(view), row.version, settled(row.status))
