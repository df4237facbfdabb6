"""The cache's protocol on a real Valkey: entries, leases, bars, and what happens while it does not answer."""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis

from orderstream import cache
from orderstream.cache import BAR_SECONDS, AsyncCache, CacheInvalidator, Entry, Fill, Lease
from orderstream.postgres.session_settings import (
    IDLE_IN_TRANSACTION_TIMEOUT_SECONDS,
    LOCK_TIMEOUT_SECONDS,
    STATEMENT_TIMEOUT_SECONDS,
)
from tests.support.servers import Servers

BODY = b'{"orderId":"a","version":3}'
BUDGET_SECONDS = 0.05


def reading(redis_url: str, scenario: Callable[[AsyncCache], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with a reader."""

    async def run() -> None:
        reader = AsyncCache(redis_url, BUDGET_SECONDS)
        try:
            await scenario(reader)
        finally:
            await reader.close()

    asyncio.run(run())


async def lease(reader: AsyncCache, order_id: str) -> str:
    """Take the lease on an order that is not cached, and return its token."""
    (found,) = await reader.look_up([order_id])
    assert isinstance(found, Lease)
    return found.token


@pytest.fixture
def invalidator(redis_url: str) -> Any:
    """The changing side."""
    changing = CacheInvalidator(redis_url, BUDGET_SECONDS)
    yield changing
    changing.close()


def test_a_miss_is_a_lease_and_its_holder_fills(redis_url: str) -> None:
    async def scenario(reader: AsyncCache) -> None:
        first, other = await reader.look_up(["a", "b"])
        assert isinstance(first, Lease)
        assert isinstance(other, Lease)
        assert await reader.look_up(["a", "b"]) == ["leased", "leased"]
        await reader.fill([Fill("a", first.token, BODY), Fill("b", other.token)])
        found, released = await reader.look_up(["a", "b"])
        assert found == Entry(BODY)
        assert isinstance(released, Lease)

    reading(redis_url, scenario)
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("order:a") == BODY
        assert 60 <= int(client.ttl("order:a")) <= 120
        assert 0 < int(client.ttl("order:b")) <= cache.LEASE_SECONDS


def test_ttls_differ(redis_url: str) -> None:
    async def scenario(reader: AsyncCache) -> None:
        ids = [str(number) for number in range(100)]
        leases = [one for one in await reader.look_up(ids) if isinstance(one, Lease)]
        await reader.fill([Fill(order_id, one.token, BODY) for order_id, one in zip(ids, leases, strict=True)])

    reading(redis_url, scenario)
    with redis.Redis.from_url(redis_url) as client:
        ttls = {int(client.ttl(f"order:{number}")) for number in range(100)}
    assert len(ttls) > 10
    assert min(ttls) >= 59
    assert max(ttls) <= 120


def test_a_delete_makes_earlier_reads_worthless(redis_url: str, invalidator: CacheInvalidator) -> None:
    async def scenario(reader: AsyncCache) -> None:
        token = await lease(reader, "a")
        assert invalidator.delete(["a"])
        await reader.fill([Fill("a", token, BODY)])
        await lease(reader, "a")

    reading(redis_url, scenario)


def test_a_lease_does_not_fill_where_a_later_one_stands(redis_url: str, invalidator: CacheInvalidator) -> None:
    """A delete lies between the two: the first reader may have read before the change, the second has not."""

    async def scenario(reader: AsyncCache) -> None:
        early = await lease(reader, "a")
        assert invalidator.delete(["a"])
        late = await lease(reader, "a")
        await reader.fill([Fill("a", early, b"old")])
        assert await reader.look_up(["a"]) == ["leased"]
        await reader.fill([Fill("a", early), Fill("a", late, BODY), Fill("a", early, b"old")])
        assert await reader.look_up(["a"]) == [Entry(BODY)]

    reading(redis_url, scenario)


def test_a_delete_forgets_an_entry(redis_url: str, invalidator: CacheInvalidator) -> None:
    async def scenario(reader: AsyncCache) -> None:
        await reader.fill([Fill("a", await lease(reader, "a"), BODY)])
        assert invalidator.delete(["a", "b"])
        await lease(reader, "a")

    reading(redis_url, scenario)


def test_nobody_fills_while_an_order_is_barred(redis_url: str, invalidator: CacheInvalidator) -> None:
    async def scenario(reader: AsyncCache) -> None:
        token = await lease(reader, "a")
        assert invalidator.bar(["a"])
        await reader.fill([Fill("a", token, BODY)])
        assert await reader.look_up(["a"]) == ["barred"]
        assert invalidator.delete(["a"])
        await reader.fill([Fill("a", token, BODY)])
        await lease(reader, "a")

    reading(redis_url, scenario)


def test_a_bar_replaces_an_entry(redis_url: str, invalidator: CacheInvalidator) -> None:
    async def scenario(reader: AsyncCache) -> None:
        await reader.fill([Fill("a", await lease(reader, "a"), BODY)])
        assert invalidator.bar(["a"])
        assert await reader.look_up(["a"]) == ["barred"]

    reading(redis_url, scenario)


def test_only_whoever_set_a_bar_lifts_it(redis_url: str, invalidator: CacheInvalidator) -> None:
    """The end of one change comes after the beginning of the next: its delete must leave the next one's bar."""

    async def scenario(reader: AsyncCache) -> None:
        next_one = CacheInvalidator(redis_url, BUDGET_SECONDS)
        assert invalidator.bar(["a"])
        assert next_one.bar(["a"])
        assert invalidator.delete(["a"])
        assert await reader.look_up(["a"]) == ["barred"]
        assert next_one.delete(["a"])
        await lease(reader, "a")
        next_one.close()

    reading(redis_url, scenario)


def test_a_bar_outlives_every_transaction(redis_url: str, invalidator: CacheInvalidator) -> None:
    assert BAR_SECONDS >= IDLE_IN_TRANSACTION_TIMEOUT_SECONDS + STATEMENT_TIMEOUT_SECONDS + LOCK_TIMEOUT_SECONDS
    invalidator.bar(["a"])
    with redis.Redis.from_url(redis_url) as client:
        assert BAR_SECONDS - 2 <= int(client.ttl("order:a")) <= BAR_SECONDS


def test_thousands_of_orders_go_in_few_commands(redis_url: str, invalidator: CacheInvalidator) -> None:
    ids = [str(number) for number in range(2_500)]
    with redis.Redis.from_url(redis_url) as client:
        before = int(client.info("commandstats").get("cmdstat_eval", {}).get("calls", 0))
        assert invalidator.bar(ids)
        assert client.dbsize() == 2_500
        assert invalidator.delete(ids)
        assert client.dbsize() == 0
        assert int(client.info("commandstats")["cmdstat_eval"]["calls"]) - before == 6


def test_nothing_to_do_asks_nobody() -> None:
    invalidator = CacheInvalidator("redis://127.0.0.1:1/0", BUDGET_SECONDS)
    assert invalidator.bar([])
    assert invalidator.delete([])


def test_a_stopped_redis_costs_nothing_and_raises_nothing() -> None:
    async def scenario(reader: AsyncCache) -> None:
        assert await reader.look_up(["a", "b"]) == ["unreachable", "unreachable"]
        await reader.fill([Fill("a", "lease:x", BODY)])
        assert reader.breaker.is_open

    started = time.monotonic()
    reading("redis://127.0.0.1:1/0", scenario)
    invalidator = CacheInvalidator("redis://127.0.0.1:1/0", BUDGET_SECONDS)
    assert not invalidator.bar(["a"])
    assert not invalidator.delete(["a"])
    assert time.monotonic() - started < 0.5


def test_a_hung_redis_costs_no_more_than_the_budget(servers: Servers, redis_url: str) -> None:
    async def scenario(reader: AsyncCache) -> None:
        await lease(reader, "a")
        servers.valkey.pause()
        for limit in (0.15, 0.005):
            started = time.monotonic()
            assert await reader.look_up(["a"]) == ["unreachable"]
            assert time.monotonic() - started < limit
            assert reader.breaker.is_open
        servers.valkey.resume()
        reader.breaker = cache.Breaker()
        assert await reader.look_up(["a"]) == ["leased"]

    try:
        reading(redis_url, scenario)
    finally:
        servers.valkey.resume()


def test_while_the_breaker_is_open_nothing_is_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)

        async def scenario(reader: AsyncCache) -> None:
            reader.breaker = cache.Breaker(lambda: 0.0)
            assert not await reader.bar(["a"])
            silent.accept()[0].close()
            assert not await reader.bar(["a"])
            assert not await reader.delete(["a"])
            await reader.fill([Fill("a", "lease:x", BODY)])
            assert await reader.look_up(["a"]) == ["unreachable"]
            with pytest.raises(BlockingIOError):
                silent.accept()

        reading(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", scenario)


def test_what_could_not_be_deleted_is_deleted_later(servers: Servers, redis_url: str) -> None:
    now = time.monotonic()
    invalidator = CacheInvalidator(redis_url, BUDGET_SECONDS)
    invalidator.breaker = cache.Breaker(lambda: now)
    with redis.Redis.from_url(redis_url) as client:
        client.mset({"order:a": BODY, "order:b": BODY, "order:c": BODY})
        try:
            servers.valkey.pause()
            started = time.monotonic()
            assert not invalidator.delete(["a"])
            assert not invalidator.delete(["b"])
            assert not invalidator.bar(["b"])
            assert time.monotonic() - started < 0.2
        finally:
            servers.valkey.resume()
        assert not invalidator.delete(["b"])
        now += cache.BREAKER_SECONDS
        assert invalidator.delete([])
        assert client.keys() == [b"order:c"]
    invalidator.close()


def test_what_could_not_be_deleted_is_deleted_before_anything_is_looked_up(servers: Servers, redis_url: str) -> None:
    now = time.monotonic()

    async def scenario(reader: AsyncCache) -> None:
        nonlocal now
        reader.breaker = cache.Breaker(lambda: now)
        await reader.fill([Fill("a", await lease(reader, "a"), BODY)])
        try:
            servers.valkey.pause()
            assert not await reader.bar(["a"])
            assert not await reader.delete(["a", "b"])
        finally:
            servers.valkey.resume()
        now += cache.BREAKER_SECONDS
        found = await reader.look_up(["a"])
        assert found[0] != Entry(BODY)
        assert len(reader._pending_deletes) == 0
        assert await reader.delete([])

    reading(redis_url, scenario)


def test_an_asyncio_bar_keeps_fills_out_until_its_own_delete(redis_url: str, invalidator: CacheInvalidator) -> None:
    async def scenario(reader: AsyncCache) -> None:
        other = AsyncCache(redis_url, BUDGET_SECONDS)
        token = await lease(reader, "a")
        assert await other.bar(["a"])
        await reader.fill([Fill("a", token, BODY)])
        assert await reader.look_up(["a"]) == ["barred"]
        assert invalidator.delete(["a"])
        assert await reader.delete(["a"])
        assert await reader.look_up(["a"]) == ["barred"]
        assert await other.delete(["a"])
        await lease(reader, "a")
        await other.close()

    reading(redis_url, scenario)


def test_an_asyncio_delete_that_failed_is_tried_again_by_the_clock(
    servers: Servers, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "BREAKER_SECONDS", 0.05)

    async def scenario(reader: AsyncCache) -> None:
        await reader.fill([Fill("a", await lease(reader, "a"), BODY)])
        try:
            servers.valkey.pause()
            assert not await reader.delete(["a"])
        finally:
            servers.valkey.resume()
        assert reader._flush_task is not None
        await asyncio.wait_for(reader._flush_task, 10)
        with redis.Redis.from_url(redis_url) as client:
            assert not client.exists("order:a")

    reading(redis_url, scenario)


def test_one_task_deletes_what_failed_in_each_outage(
    servers: Servers, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "BREAKER_SECONDS", 0.05)

    async def scenario(reader: AsyncCache) -> None:
        with redis.Redis.from_url(redis_url) as client:
            for _outage in range(2):
                client.mset({"order:a": BODY, "order:b": BODY})
                try:
                    servers.valkey.pause()
                    assert not await reader.delete(["a"])
                    before = asyncio.all_tasks()
                    assert not await reader.delete(["b"])
                    assert asyncio.all_tasks() == before
                finally:
                    servers.valkey.resume()
                assert reader._flush_task is not None
                await asyncio.wait_for(reader._flush_task, 10)
                assert client.dbsize() == 0

    reading(redis_url, scenario)


def test_no_deletion_is_forgotten_beyond_one_command(redis_url: str) -> None:
    async def scenario() -> None:
        reader = AsyncCache(redis_url, 5.0)
        ids = [str(number) for number in range(2 * cache.KEYS_MAX + 1)]
        with redis.Redis.from_url(redis_url) as client:
            client.mset({f"order:{order_id}": BODY for order_id in ids})
            assert await reader.delete(ids)
            assert client.dbsize() == 0
        await reader.close()

    asyncio.run(scenario())


def test_what_is_owed_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PENDING_DELETES_MAX", 3)
    invalidator = CacheInvalidator("redis://127.0.0.1:1/0", BUDGET_SECONDS)
    for order_id in "abcde":
        assert not invalidator.delete([order_id])
    assert list(invalidator._pending_deletes) == ["c", "d", "e"]


def test_the_breaker_asks_again_after_a_while() -> None:
    now = 0.0
    breaker = cache.Breaker(lambda: now)
    assert not breaker.is_open
    breaker.trip(ConnectionError())
    assert breaker.is_open
    now = cache.BREAKER_SECONDS
    assert not breaker.is_open
