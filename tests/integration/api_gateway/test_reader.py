"""Reading through the cache: shared queries, leases, and that no paused read makes a stale order visible (P8)."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import redis

from orderstream.api_gateway.batcher import QueueFullError
from orderstream.api_gateway.orders.reader import LINES_PER_TURN_MAX, Reader
from orderstream.api_gateway.session import Session
from orderstream.cache import AsyncCache, CacheInvalidator
from orderstream.postgres.connect import Connection
from tests.support.samples import ORDER_ID

OTHER_ID = ORDER_ID.replace("0", "1")
CACHE_BUDGET_SECONDS = 5.0
"""More than operators have, because a busy machine may delay an answer of Redis."""


class PausingSession(Session):
    """Records its queries, and pauses between the query and the answer until `go` is set."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "test")
        self.queries: list[list[str]] = []
        self.read = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    @asynccontextmanager
    async def reading(
        self, statement: Any, parameters: Any, row_factory: Any
    ) -> AsyncIterator[psycopg.AsyncCursor[Any]]:
        self.queries.append(parameters["ids"])
        async with super().reading(statement, parameters, row_factory) as cursor:
            self.read.set()
            await self.go.wait()
            yield cursor


@asynccontextmanager
async def reading(postgres_url: str, redis_url: str, limit: int = 100) -> AsyncIterator[tuple[Reader, PausingSession]]:
    async with (
        PausingSession(postgres_url) as session,
        AsyncCache(redis_url, CACHE_BUDGET_SECONDS) as cache,
        Reader(session, cache, waiting_limit=limit) as reader,
    ):
        yield reader, session


@pytest.fixture
def orders(connection: Connection) -> Callable[[str, int], None]:
    """Write a settled order with a version."""

    def write(order_id: str, version: int) -> None:
        connection.execute(
            "INSERT INTO orders (id, user_id, amount, currency, status, version, payment, stock)"
            " VALUES (%s, 'u-1', 1, 'USD', 'CONFIRMED', %s, 'authorized', 'reserved')"
            " ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version",
            (order_id, version),
        )

    return write


Write = Callable[[str, int], None]
Change = Callable[[CacheInvalidator, Write, Callable[[], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]]


async def change_of_an_open_order(cache: CacheInvalidator, write: Write, resume: Any) -> None:
    write(ORDER_ID, 4)
    cache.delete([ORDER_ID])
    await resume()


async def change_of_a_settled_order(cache: CacheInvalidator, write: Write, resume: Any) -> None:
    cache.bar([ORDER_ID])
    write(ORDER_ID, 4)
    cache.delete([ORDER_ID])
    await resume()


async def change_seen_before_its_delete(cache: CacheInvalidator, write: Write, resume: Any) -> None:
    cache.bar([ORDER_ID])
    write(ORDER_ID, 4)
    await resume()
    cache.delete([ORDER_ID])


async def change_seen_before_its_commit(cache: CacheInvalidator, write: Write, resume: Any) -> None:
    cache.bar([ORDER_ID])
    await resume()
    write(ORDER_ID, 4)
    cache.delete([ORDER_ID])


@pytest.mark.parametrize(
    "change",
    [
        change_of_an_open_order,
        change_of_a_settled_order,
        change_seen_before_its_delete,
        change_seen_before_its_commit,
    ],
)
def test_a_paused_read_does_not_write_a_stale_order_into_the_cache(
    postgres_url: str, redis_url: str, orders: Write, change: Change
) -> None:
    orders(ORDER_ID, 3)

    async def scenario() -> None:
        cache = CacheInvalidator(redis_url, CACHE_BUDGET_SECONDS)
        async with (
            reading(postgres_url, redis_url) as (paused, session),
            reading(postgres_url, redis_url) as (other, _),
        ):
            session.go.clear()
            early = asyncio.create_task(paused.read(ORDER_ID))
            await session.read.wait()

            async def resume() -> None:
                session.go.set()
                found, outcome = await early
                assert found is not None
                assert (found.version, outcome) == (3, "MISS")

            await change(cache, orders, resume)
            versions = []
            for _ in range(3):
                found, outcome = await other.read(ORDER_ID)
                assert found is not None
                versions.append((found.version, outcome))
            assert versions == [(4, "MISS"), (4, "HIT"), (4, "HIT")]
        cache.close()

    asyncio.run(scenario())


def test_a_barred_order_is_read_from_postgres(postgres_url: str, redis_url: str, orders: Write) -> None:
    orders(ORDER_ID, 3)

    async def scenario() -> None:
        cache = CacheInvalidator(redis_url, CACHE_BUDGET_SECONDS)
        async with reading(postgres_url, redis_url) as (reader, _):
            assert (await reader.read(ORDER_ID))[1] == "MISS"
            cache.bar([ORDER_ID])
            orders(ORDER_ID, 4)
            for _ in range(2):
                found, outcome = await reader.read(ORDER_ID)
                assert found is not None
                assert (found.version, outcome) == (4, "BYPASS")
        cache.close()

    asyncio.run(scenario())


def test_concurrent_misses_share_a_query_that_has_not_begun(postgres_url: str, redis_url: str, orders: Write) -> None:
    orders(ORDER_ID, 3)
    orders(OTHER_ID, 1)

    async def scenario() -> None:
        async with reading(postgres_url, redis_url) as (reader, session):
            session.go.clear()
            early = [asyncio.create_task(reader.read(ORDER_ID)) for _ in range(10)]
            await session.read.wait()
            orders(ORDER_ID, 4)
            late = [asyncio.create_task(reader.read(order_id)) for order_id in [ORDER_ID, OTHER_ID] * 5]
            while len(reader._queries) < 2:
                await asyncio.wait(late, timeout=0.01)
            session.go.set()
            assert {found.version for found, _ in await asyncio.gather(*early) if found} == {3}
            assert [found.version for found, _ in await asyncio.gather(*late) if found] == [4, 1] * 5
            assert session.queries == [[ORDER_ID], [ORDER_ID, OTHER_ID]]

    asyncio.run(scenario())


def test_if_a_client_disconnects_the_next_reader_gets_its_cache_lease(
    postgres_url: str, redis_url: str, orders: Write
) -> None:
    orders(ORDER_ID, 3)

    async def scenario() -> None:
        async with reading(postgres_url, redis_url) as (reader, _):
            cancelled, waiting = (asyncio.create_task(reader.read(ORDER_ID)) for _ in range(2))
            await asyncio.sleep(0)
            assert len(reader._lookups._waiting[ORDER_ID].futures) == 2
            cancelled.cancel()
            found, outcome = await waiting
            assert found is not None
            assert (found.version, outcome) == (3, "MISS")
            assert (await reader.read(ORDER_ID))[1] == "HIT"

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_foreign_value_in_the_cache_is_ignored(postgres_url: str, redis_url: str, orders: Write) -> None:
    orders(ORDER_ID, 3)
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"order:{ORDER_ID}", b"\xffjunk")

    async def scenario() -> None:
        async with reading(postgres_url, redis_url) as (reader, _):
            found, outcome = await reader.read(ORDER_ID)
            assert found is not None
            assert (found.version, outcome) == (3, "BYPASS")

    asyncio.run(scenario())


def test_an_unknown_order_is_not_cached(postgres_url: str, redis_url: str, orders: Write) -> None:
    async def scenario() -> None:
        async with reading(postgres_url, redis_url) as (reader, _):
            assert await reader.read(ORDER_ID) == (None, "MISS")
            orders(ORDER_ID, 3)
            found, _ = await reader.read(ORDER_ID)
            assert found is not None

    asyncio.run(scenario())


def test_a_reader_gives_back_a_cache_lease_that_it_does_not_use(postgres_url: str, redis_url: str) -> None:
    async def scenario() -> None:
        async with reading(postgres_url, redis_url) as (reader, _):
            await reader.read(ORDER_ID)
            with redis.Redis.from_url(redis_url) as client:
                while client.exists(f"order:{ORDER_ID}"):
                    await asyncio.wait([asyncio.create_task(reader.read(OTHER_ID))])

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_the_number_of_waiting_items_is_limited(postgres_url: str, redis_url: str) -> None:
    async def scenario() -> None:
        async with reading(postgres_url, redis_url, limit=5) as (reader, _):
            ids = [ORDER_ID[:-2] + f"{number:02d}" for number in range(10)]
            answers = await asyncio.gather(*(reader.read(order_id) for order_id in ids), return_exceptions=True)
            assert sum(isinstance(answer, QueueFullError) for answer in answers) == 5
            assert answers.count((None, "MISS")) == 5

    asyncio.run(scenario())


def test_other_requests_are_served_while_many_large_orders_are_decoded(
    postgres_url: str, redis_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of order lines that are decoded in one turn of the event loop is limited."""
    count, lines = 20, 1_000
    ids = [ORDER_ID[:-3] + f"{number:03}" for number in range(count)]
    connection.execute(
        "INSERT INTO orders (id, user_id, amount, currency)"
        " SELECT id, 'u-1', 1, 'USD' FROM unnest(%s::text[]) AS t (id)",
        [ids],
    )
    connection.execute(
        "INSERT INTO order_items (order_id, sku, qty, price)"
        " SELECT id, 'SKU-' || line, 1, 1 FROM unnest(%s::text[]) AS t (id), generate_series(1, %s) AS line",
        [ids, lines],
    )
    turn = 0
    decoded: Counter[int] = Counter()

    async def scenario() -> None:
        def count_turns() -> None:
            nonlocal turn
            turn += 1
            asyncio.get_running_loop().call_soon(count_turns)

        load_row = psycopg.AsyncCursor.__anext__

        async def counted(cursor: Any) -> Any:
            row = await load_row(cursor)
            decoded[turn] += lines
            return row

        count_turns()
        async with reading(postgres_url, redis_url) as (reader, _):
            monkeypatch.setattr(psycopg.AsyncCursor, "__anext__", counted)
            found = await asyncio.gather(*(reader.read(order_id) for order_id in ids))
        assert all(order is not None for order, _ in found)

    asyncio.run(scenario())
    assert decoded.total() == count * lines
    assert max(decoded.values()) <= LINES_PER_TURN_MAX + lines
