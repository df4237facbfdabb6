"""The gateway handles requests that arrive together with a constant number of statements."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from functools import partial
from uuid import uuid4

import pytest

from orderstream.api_gateway.orders.canceller import Cancellation, Canceller
from orderstream.api_gateway.orders.idempotency import IdempotencyKey
from orderstream.api_gateway.orders.key_owners import KeyOwners
from orderstream.api_gateway.orders.reader import Reader
from orderstream.api_gateway.orders.waiters import Waiters
from orderstream.api_gateway.orders.writer import NewOrder, Stored, Writer
from orderstream.api_gateway.session import Session
from orderstream.cache import AsyncCache
from orderstream.domain.events import Item, OrderCreated
from orderstream.telemetry.tracing import NO_TRACE
from tests.integration.decisions.orders import place
from tests.integration.set_based.counting import Case, Counting, Work, assert_set_based

LIMIT = 100
CACHE_SECONDS = 5.0

Serve = Callable[[Session, AsyncCache], Awaitable[int]]


def _served(counting: Counting, serve: Serve) -> Work:
    """Return work that serves requests with one session and one cache."""

    async def run() -> int:
        async with (
            Session(counting.settings.postgres_url, "test") as session,
            AsyncCache(counting.settings.redis_url, CACHE_SECONDS) as cache,
        ):
            return await serve(session, cache)

    return lambda: asyncio.run(run())


def _new(lines: int = 1, key: IdempotencyKey | None = None) -> NewOrder:
    items = tuple(Item(sku=f"SKU-{number}", qty=1, price=Decimal(1)) for number in range(lines))
    created = OrderCreated(order_id=str(uuid4()), user_id="u-1", items=items, amount=Decimal(lines), currency="USD")
    return NewOrder(created, NO_TRACE, key)


def _keyed(number: int) -> list[NewOrder]:
    return [_new(key=IdempotencyKey(str(uuid4()), b"\x01" * 32)) for _ in range(number)]


async def _store(new: Sequence[NewOrder], session: Session, _cache: AsyncCache) -> int:
    async with Writer(session, waiting_limit=LIMIT) as writer:
        stored = await asyncio.gather(*(writer.store(order) for order in new))
    return sum(isinstance(found, Stored) for found in stored)


def _orders(counting: Counting, number: int) -> Work:
    return _served(counting, partial(_store, [_new() for _ in range(number)]))


def _lines(counting: Counting, number: int) -> Work:
    """The items are the lines of one order."""
    work = _served(counting, partial(_store, [_new(number)]))
    return lambda: work() * number


def _orders_with_keys(counting: Counting, number: int) -> Work:
    return _served(counting, partial(_store, _keyed(number)))


def _replays(counting: Counting, number: int) -> Work:
    first = _keyed(number)
    asyncio.run(_prepare(counting, first))
    again = [_new(key=order.key) for order in first]

    async def serve(session: Session, _cache: AsyncCache) -> int:
        async with Writer(session, waiting_limit=LIMIT) as writer:
            return sum(stored.replayed for stored in await asyncio.gather(*(writer.store(order) for order in again)))

    return _served(counting, serve)


async def _prepare(counting: Counting, new: Sequence[NewOrder]) -> None:
    async with (
        Session(counting.settings.postgres_url, "before") as session,
        AsyncCache(counting.settings.redis_url, CACHE_SECONDS) as cache,
    ):
        await _store(new, session, cache)


def _owners(counting: Counting, number: int) -> Work:
    new = _keyed(number)
    asyncio.run(_prepare(counting, new))

    async def serve(session: Session, _cache: AsyncCache) -> int:
        async with KeyOwners(session, waiting_limit=LIMIT) as owners:
            found = await asyncio.gather(*(owners.find(order.key.key) for order in new if order.key))
        return sum(owner is not None for owner in found)

    return _served(counting, serve)


def _settled(counting: Counting, number: int) -> list[str]:
    ids = [place(counting.tables) for _ in range(number)]
    counting.tables.execute(
        "UPDATE orders SET status = 'CONFIRMED', payment = 'authorized', stock = 'reserved', version = 3"
        " WHERE id = ANY(%s)",
        (ids,),
    )
    return ids


def _cold_reads(counting: Counting, number: int) -> Work:
    ids = _settled(counting, number)

    async def serve(session: Session, cache: AsyncCache) -> int:
        async with Reader(session, cache, waiting_limit=LIMIT) as reader:
            return sum(found is not None for found, _ in await asyncio.gather(*map(reader.read, ids)))

    return _served(counting, serve)


def _waiting_reads(counting: Counting, number: int) -> Work:
    ids = _settled(counting, number)

    async def serve(session: Session, _cache: AsyncCache) -> int:
        async with Waiters(session) as waiters:
            connected: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            ended = await asyncio.gather(*(waiters.wait(order_id, 20, connected) for order_id in ids))
        return ended.count("over")

    return _served(counting, serve)


def _cancels(counting: Counting, number: int) -> Work:
    ids = _settled(counting, number)

    async def serve(session: Session, cache: AsyncCache) -> int:
        async with Canceller(session, cache, waiting_limit=LIMIT) as canceller:
            cancelled = await asyncio.gather(*(canceller.cancel(Cancellation(key, NO_TRACE)) for key in ids))
        return sum(b'"CANCELLED"' in found.document.body for found in cancelled if found.document)

    return _served(counting, serve)


REQUESTS = {
    "new orders": _orders,
    "lines of a new order": _lines,
    "new orders with keys": _orders_with_keys,
    "replayed keys": _replays,
    "owners of keys": _owners,
    "cold reads": _cold_reads,
    "waiting reads": _waiting_reads,
    "cancels": _cancels,
}


@pytest.mark.parametrize("case", REQUESTS.values(), ids=REQUESTS)
def test_api_gateway(counting: Counting, case: Case) -> None:
    assert_set_based(counting, case)
