"""Between the commit of a cancel and the delete in the cache, no gateway serves the old order (P8)."""

import asyncio
from typing import Any

import pytest
import redis

from orderstream.cache import AsyncCache, Fill, Lease
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.application import application
from tests.integration.api_gateway.test_get import settle
from tests.integration.decisions.orders import place
from tests.support.asgi import call

OLD = b'{"status":"CONFIRMED","version":3}'
BUDGET_SECONDS = 5.0


class _PausingCache(AsyncCache):
    """Waits for `go` before each delete."""

    def __init__(self, redis_url: str, _budget_seconds: float) -> None:
        super().__init__(redis_url, BUDGET_SECONDS)
        self.deleting = asyncio.Event()
        self.go = asyncio.Event()

    async def delete(self, ids: Any) -> bool:
        self.deleting.set()
        await self.go.wait()
        return await super().delete(ids)


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[_PausingCache]:
    """The caches of the gateways that the test starts, in their order."""
    created: list[_PausingCache] = []

    def cache(redis_url: str, budget_seconds: float) -> _PausingCache:
        created.append(_PausingCache(redis_url, budget_seconds))
        return created[-1]

    monkeypatch.setattr("tests.integration.api_gateway.application.AsyncCache", cache)
    return created


@pytest.mark.parametrize("held", ["an entry", "a lease"])
def test_a_committed_cancel_is_visible_before_the_cache_entry_is_deleted(
    connection: Connection, postgres_url: str, redis_url: str, caches: list[_PausingCache], held: str
) -> None:
    """The process may end at this point, and then the delete never happens."""
    order_id = place(connection)
    settle(connection, order_id)

    async def scenario() -> None:
        async with application(postgres_url, redis_url) as api, application(postgres_url, redis_url) as other:
            reader = caches[1]
            (lease,) = await reader.look_up([order_id])
            assert isinstance(lease, Lease)
            late = Fill(order_id, lease.token, OLD)
            if held == "an entry":
                await reader.fill([late])
            cancelling = asyncio.create_task(call(api, "POST", f"/orders/{order_id}/cancel"))
            await asyncio.wait_for(caches[0].deleting.wait(), 20)
            await reader.fill([late])
            shown = await call(other, "GET", f"/orders/{order_id}")
            assert b'"CANCELLED"' in shown.body
            assert shown.headers["x-cache"] == "BYPASS"
            caches[0].go.set()
            assert (await cancelling).status == 202
            reads = [await call(other, "GET", f"/orders/{order_id}") for _ in range(2)]
            assert [read.headers["x-cache"] for read in reads] == ["MISS", "HIT"]

    asyncio.run(scenario())


def test_a_cancel_of_an_open_order_bars_no_cache_entry(
    connection: Connection, postgres_url: str, redis_url: str, caches: list[_PausingCache]
) -> None:
    """An open order has no cache entry. A bar would need a round trip while the row is locked."""
    order_id = place(connection)

    async def scenario() -> None:
        async with application(postgres_url, redis_url) as api:
            cancelling = asyncio.create_task(call(api, "POST", f"/orders/{order_id}/cancel"))
            await asyncio.wait_for(caches[0].deleting.wait(), 20)
            with redis.Redis.from_url(redis_url) as client:
                assert client.get(f"order:{order_id}") is None
            caches[0].go.set()
            assert (await cancelling).status == 202

    asyncio.run(scenario())
