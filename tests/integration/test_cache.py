"""The protocol of the cache on a real Valkey: entries, leases and bars, also while Valkey does not answer."""

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
BUDGET_SECONDS = 2.0
"""Longer than a busy machine delays a command, and long enough to see whether a call has waited for it."""


def run_with_reader(redis_url: str, scenario: Callable[[AsyncCache], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with a cache for readers."""

    async def run() -> None:
        reader = AsyncCache(redis_url, BUDGET_SECONDS)
        try:
            await scenario(reader)
        finally:
            await reader.close()

    asyncio.run(run())


async def lease(reader: AsyncCache, order_id: str) -> str:
    """Look up an order that is not cached, and return the token of its lease."""
    (found,) = await reader.look_up([order_id])
    assert isinstance(found, Lease)
    return found.token


@pytest.fixture
def invalidator(redis_url: str) -> Any:
    """The cache of a process that changes orders."""
    cache_invalidator = CacheInvalidator(redis_url, BUDGET_SECONDS)
    yield cache_invalidator
    cache_invalidator.close()


def test_a_cache_miss_gives_a_lease_with_which_the_reader_fills_the_key(redis_url: str) -> None:
    async def scenario(reader: AsyncCache) -> None:
        first, other = await reader.look_up(["a", "b"])
        assert isinstance(first, Lease)
        assert isinstance(other, Lease)
        assert await reader.look_up(["a", "b"]) == ["leased", "leased"]
        await reader.fill([Fill("a", first.token, BODY), Fill("b", other.token)])
        found, released = await reader.look_up(["a", "b"])
        assert found == Entry(BODY)
        assert isinstance(released, Lease)

    run_with_reader(redis_url, scenario)
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("order:a") == BODY
        assert 60 <= int(client.ttl("order:a")) <= 120
        assert 0 < int(client.ttl("order:b")) <= cache.LEASE_SECONDS


def test_expiry_times_are_spread(redis_url: str) -> None:
    async def scenario(reader: AsyncCache) -> None:
        ids = [str(number) for number in range(100)]
        leases = [found for found in await reader.look_up(ids) if isinstance(found, Lease)]
        await reader.fill([Fill(order_id, lease.token, BODY) for order_id, lease in zip(ids, leases, strict=True)])

    run_with_reader(redis_url, scenario)
    with redis.Redis.from_url(redis_url) as client:
        ttls = {int(client.ttl(f"order:{number}")) for number in range(100)}
    assert len(ttls) > 10
    assert min(ttls) >= 59
    assert max(ttls) <= 120


def test_after_a_delete_an_earlier_read_cannot_fill_the_key(redis_url: str, invalidator: CacheInvalidator) -> None:
    async def scenario(reader: AsyncCache) -> None:
        token = await lease(reader, "a")
        assert invalidator.delete(["a"])
        await reader.fill([Fill("a", token, BODY)])
        await lease(reader, "a")

    run_with_reader(redis_url, scenario)


def test_a_lease_cannot_fill_a_key_with_a_later_lease(redis_url: str, invalidator: CacheInvalidator) -> None:
    """A delete comes between the two leases. The first reader may have read the order before the change."""

    async def scenario(reader: AsyncCache) -> None:
        early = await lease(reader, "a")
        assert invalidator.delete(["a"])
        late = await lease(reader, "a")
        await reader.fill([Fill("a", early, b"old")])
        assert await reader.look_up(["a"]) == ["leased"]
        await reader.fill([Fill("a", early), Fill("a", late, BODY), Fill("a", early, b"old")])
        assert await reader.look_up(["a"]) == [Entry(BODY)]

    run_with_reader(redis_url, scenario)


def test_a_delete_removes_an_entry(redis_url: str, invalidator: CacheInvalidator) -> None:
    async def scenario(reader: AsyncCache) -> None:
        await reader.fill([Fill("a", await lease(reader, "a"), BODY)])
        assert invalidator.delete(["a", "b"])
        await lease(reader, "a")

    run_with_reader(redis_url, scenario)


def test_a_barred_order_cannot_be_filled(redis_url: str, invalidator: CacheInvalidator) -> None:
    async def scenario(reader: AsyncCache) -> None:
        token = await lease(reader, "a")
        assert invalidator.bar(["a"])
        await reader.fill([Fill("a", token, BODY)])
        assert await reader.look_up(["a"]) == ["barred"]
        assert invalidator.delete(["a"])
        await reader.fill([Fill("a", token, BODY)])
        await lease(reader, "a")

    run_with_reader(redis_url, scenario)


def test_a_bar_replaces_an_entry(redis_url: str, invalidator: CacheInvalidator) -> None:
    async def scenario(reader: AsyncCache) -> None:
        await reader.fill([Fill("a", await lease(reader, "a"), BODY)])
        assert invalidator.bar(["a"])
        assert await reader.look_up(["a"]) == ["barred"]

    run_with_reader(redis_url, scenario)


def test_only_the_process_that_set_a_bar_removes_the_bar(redis_url: str, invalidator: CacheInvalidator) -> None:
    """If a change ends after the next one has begun, its delete must not lift the bar of the next one."""

    async def scenario(reader: AsyncCache) -> None:
        other = CacheInvalidator(redis_url, BUDGET_SECONDS)
        assert invalidator.bar(["a"])
        assert other.bar(["a"])
        assert invalidator.delete(["a"])
        assert await reader.look_up(["a"]) == ["barred"]
        assert other.delete(["a"])
        await lease(reader, "a")
        other.close()

    run_with_reader(redis_url, scenario)


def test_a_bar_lasts_longer_than_any_transaction(redis_url: str, invalidator: CacheInvalidator) -> None:
    assert BAR_SECONDS >= IDLE_IN_TRANSACTION_TIMEOUT_SECONDS + STATEMENT_TIMEOUT_SECONDS + LOCK_TIMEOUT_SECONDS
    invalidator.bar(["a"])
    with redis.Redis.from_url(redis_url) as client:
        assert BAR_SECONDS - 2 <= int(client.ttl("order:a")) <= BAR_SECONDS


def test_thousands_of_orders_need_few_commands(redis_url: str, invalidator: CacheInvalidator) -> None:
    ids = [str(number) for number in range(2_500)]
    with redis.Redis.from_url(redis_url) as client:
        before = int(client.info("commandstats").get("cmdstat_eval", {}).get("calls", 0))
        assert invalidator.bar(ids)
        assert client.dbsize() == 2_500
        assert invalidator.delete(ids)
        assert client.dbsize() == 0
        assert int(client.info("commandstats")["cmdstat_eval"]["calls"]) - before == 6


def test_without_orders_no_command_is_sent() -> None:
    invalidator = CacheInvalidator("redis://127.0.0.1:1/0", BUDGET_SECONDS)
    assert invalidator.bar([])
    assert invalidator.delete([])


def test_a_stopped_redis_causes_no_delay_and_no_error() -> None:
    async def scenario(reader: AsyncCache) -> None:
        assert await reader.look_up(["a", "b"]) == ["unreachable", "unreachable"]
        await reader.fill([Fill("a", "lease:x", BODY)])
        assert reader.breaker.is_open

    started = time.monotonic()
    run_with_reader("redis://127.0.0.1:1/0", scenario)
    invalidator = CacheInvalidator("redis://127.0.0.1:1/0", BUDGET_SECONDS)
    assert not invalidator.bar(["a"])
    assert not invalidator.delete(["a"])
    assert time.monotonic() - started < BUDGET_SECONDS


def test_a_hanging_redis_delays_a_call_by_the_budget_at_most(servers: Servers, redis_url: str) -> None:
    async def scenario(reader: AsyncCache) -> None:
        await lease(reader, "a")
        servers.valkey.pause()
        for limit in (3 * BUDGET_SECONDS, BUDGET_SECONDS):
            started = time.monotonic()
            assert await reader.look_up(["a"]) == ["unreachable"]
            assert time.monotonic() - started < limit
            assert reader.breaker.is_open
        servers.valkey.resume()
        reader.breaker = cache.Breaker()
        assert await reader.look_up(["a"]) == ["leased"]

    try:
        run_with_reader(redis_url, scenario)
    finally:
        servers.valkey.resume()


def test_while_the_circuit_breaker_is_open_the_cache_sends_no_command() -> None:
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

        run_with_reader(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", scenario)


def test_a_failed_delete_is_retried_by_the_next_delete(servers: Servers, redis_url: str) -> None:
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
            assert time.monotonic() - started < 2 * BUDGET_SECONDS
        finally:
            servers.valkey.resume()
        assert not invalidator.delete(["b"])
        now += cache.BREAKER_SECONDS
        assert invalidator.delete([])
        assert client.keys() == [b"order:c"]
    invalidator.close()


def test_a_failed_delete_is_retried_before_the_next_lookup(servers: Servers, redis_url: str) -> None:
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

    run_with_reader(redis_url, scenario)


def test_an_asyncio_bar_blocks_fills_until_its_own_delete(redis_url: str, invalidator: CacheInvalidator) -> None:
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

    run_with_reader(redis_url, scenario)


def test_a_failed_asyncio_delete_is_retried_by_a_timer(
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

    run_with_reader(redis_url, scenario)


def test_one_task_per_outage_retries_the_failed_deletes(
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

    run_with_reader(redis_url, scenario)


def test_pending_deletes_beyond_one_command_are_sent_too(redis_url: str) -> None:
    async def scenario() -> None:
        reader = AsyncCache(redis_url, 5.0)
        ids = [str(number) for number in range(2 * cache.KEYS_MAX + 1)]
        with redis.Redis.from_url(redis_url) as client:
            client.mset({f"order:{order_id}": BODY for order_id in ids})
            assert await reader.delete(ids)
            assert client.dbsize() == 0
        await reader.close()

    asyncio.run(scenario())


def test_the_number_of_pending_deletes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PENDING_DELETES_MAX", 3)
    invalidator = CacheInvalidator("redis://127.0.0.1:1/0", BUDGET_SECONDS)
    for order_id in "abcde":
        assert not invalidator.delete([order_id])
    assert list(invalidator._pending_deletes) == ["c", "d", "e"]


def test_the_circuit_breaker_of_the_cache_closes_after_a_while() -> None:
    now = 0.0
    breaker = cache.Breaker(lambda: now)
    assert not breaker.is_open
    breaker.trip(ConnectionError())
    assert breaker.is_open
    now = cache.BREAKER_SECONDS
    assert not breaker.is_open
