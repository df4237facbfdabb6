"""Reading an order, through the cache (P8, P11).

Whoever misses shares one query with all who came before it was sent, for this order and for others. Nobody joins a
query that is under way: it may have looked before the change that its asker already knows of.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import psycopg
from msgspec import Raw, Struct

from orderstream.api_gateway.batcher import Asked, FullError, Gathering, TryAgainError
from orderstream.api_gateway.schemas import ItemView, OrderView, PaymentView, StockView
from orderstream.api_gateway.session import Session
from orderstream.cache import AsyncCache, Entry, Fill, Lease, Lookup
from orderstream.domain.order import settled
from orderstream.postgres.connect import AsyncConnection, AsyncCursor
from orderstream.postgres.sql import load

BATCH_LIMIT = 200
LINES_PER_TURN_MAX = 5_000
"""Lines of orders that are decoded in one turn of the event loop. They take some 5 ms."""

SQL = load("orderstream.api_gateway.orders")

Outcome = Literal["HIT", "MISS", "BYPASS"]

_SKUS = 13
"""The column of `read_orders` that has one element for each line."""

_encode = msgspec.json.Encoder().encode


class Reading(Struct, frozen=True):
    """An order's JSON, and what the reply's head says of it."""

    body: bytes
    version: int
    settled: bool


class _Versioned(Struct):
    version: int


_decode_version = msgspec.json.Decoder(_Versioned).decode


class Reader:
    """Reads orders. Used as a context manager."""

    def __init__(self, session: Session, cache: AsyncCache, *, waiting_limit: int) -> None:
        self._session = session
        self._cache = cache
        self._lookups = Gathering(self._look_up, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)
        self._queries = Gathering(self._query, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)
        self._fills = Gathering(self._fill, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)

    async def __aenter__(self) -> "Reader":
        for gathering in (self._lookups, self._queries, self._fills):
            await gathering.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        for gathering in (self._lookups, self._queries, self._fills):
            await gathering.__aexit__(*error)
        await self._cache.close()

    async def read(self, order_id: str) -> tuple[Reading | None, Outcome]:
        """Return an order, None if there is none, and what the cache had to do with it. Raises FullError."""
        found: Lookup = "unreachable"
        if not self._cache.is_bypassed:
            found = await self._lookups.ask(order_id, order_id)
        if isinstance(found, Entry) and (reading := _cached(found.body)) is not None:
            return reading, "HIT"
        reading = await self._queries.ask(order_id, order_id)
        if isinstance(found, Lease):
            await self._use(found, order_id, reading)
        return reading, "MISS" if isinstance(found, Lease) or found == "leased" else "BYPASS"

    async def _use(self, lease: Lease, order_id: str, reading: Reading | None) -> None:
        """Fill the cache with a settled order; give the lease on anything else back, without waiting for it."""
        body = reading.body if reading is not None and reading.settled else b""
        with contextlib.suppress(FullError):
            filled = self._fills.ask(order_id + lease.token, Fill(order_id, lease.token, body))
            if body:
                await filled

    async def _look_up(self, batch: Sequence[Asked[str, Lookup]]) -> None:
        for asked, found in zip(batch, await self._cache.look_up([one.item for one in batch]), strict=True):
            holder = next((future for future in asked.futures if not future.done()), None)
            if isinstance(found, Lease) and holder is not None:
                holder.set_result(found)
                asked.answer("leased")
            else:
                asked.answer(found)

    async def _query(self, batch: Sequence[Asked[str, Reading | None]]) -> None:
        try:
            ids = [asked.item for asked in batch]
            async with self._session.reading(SQL["read_orders"], {"ids": ids}) as cursor:
                readings = await _readings(cursor)
        except psycopg.Error as error:
            raise TryAgainError from error
        for asked in batch:
            asked.answer(readings.get(asked.item))

    async def _fill(self, batch: Sequence[Asked[Fill, None]]) -> None:
        await self._cache.fill([asked.item for asked in batch])
        for asked in batch:
            asked.answer(None)


async def read(tx: AsyncConnection, ids: Sequence[str]) -> dict[str, Reading]:
    """Read orders as they stand within a transaction, past the cache."""
    if not ids:
        return {}
    return await _readings(await tx.execute(SQL["read_orders"], {"ids": ids}))


async def _readings(cursor: AsyncCursor) -> dict[str, Reading]:
    """Decode the rows of `read_orders`, each only when it is its turn. After many lines, other requests go on first."""
    readings: dict[str, Reading] = {}
    lines = 0
    async for row in cursor:
        lines += len(row[_SKUS] or ())
        if lines > LINES_PER_TURN_MAX:
            lines = 0
            await asyncio.sleep(0)
        readings[row[0]] = _reading(row)
    return readings


def _cached(body: bytes) -> Reading | None:
    """Read an entry; None for what is none of ours."""
    try:
        return Reading(body, _decode_version(body).version, settled=True)
    except msgspec.DecodeError:
        return None


def _reading(row: Sequence[Any]) -> Reading:
    """Turn a row of `read_orders` into the order as the API shows it."""
    (order_id, user_id, amount, currency, status, failure_reason, version, created_at, updated_at) = row[:9]
    (payment, payment_at, stock, stock_at, skus, qtys, prices) = row[9:]
    lines = zip(skus or (), qtys or (), prices or (), strict=True)
    view = OrderView(
        order_id=order_id,
        user_id=user_id,
        items=[ItemView(sku, qty, Raw(price.encode())) for sku, qty, price in lines],
        amount=Raw(amount.encode()),
        currency=currency,
        status=status,
        failure_reason=failure_reason,
        version=version,
        created_at=created_at,
        updated_at=updated_at,
        payment=PaymentView(payment, payment_at),
        stock=StockView(stock, stock_at),
    )
    return Reading(_encode(view), version, settled(status))
