"""A Redis that serves reads and refuses writes: no process can delete an entry, so no process serves one (P8)."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from orderstream import cache
from orderstream.cache import AsyncCache, CacheInvalidator, Entry, Fill, Lease, PendingDeletes
from orderstream.local.processes import ports
from tests.support.valkeys import valkey
from tests.support.waiting import wait_until

BODY = b'{"orderId":"a","version":3}'
BUDGET_SECONDS = 2.0
"""Long enough for a busy machine: the tests are about refusals of Redis, not about its speed."""

Client = redis.Redis
Setting = dict[str, str]
NO_MEMORY: Setting = {"maxmemory-policy": "noeviction", "maxmemory": "1"}
"""The sequence matters: with another policy, Redis would evict keys at once."""
TOO_FEW_REPLICAS: Setting = {"min-replicas-to-write": "1"}


@contextmanager
def _configured(client: Client, setting: Setting) -> Iterator[None]:
    before: Setting = {name: str(client.config_get(name)[name]) for name in setting}
    for name, value in setting.items():
        client.config_set(name, value)
    try:
        yield
    finally:
        for name, value in reversed(before.items()):
            client.config_set(name, value)


@contextmanager
def _replica(client: Client) -> Iterator[None]:
    """Make the server a replica of a master that is down. It serves its keys and refuses every write."""
    client.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


REFUSALS: dict[str, Callable[[Client], Any]] = {
    "no memory": lambda client: _configured(client, NO_MEMORY),
    "replica": _replica,
    "too few replicas": lambda client: _configured(client, TOO_FEW_REPLICAS),
}


def _run(url: str, scenario: Callable[[AsyncCache, AsyncCache], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with the caches of two gateways."""

    async def run() -> None:
        async with AsyncCache(url, BUDGET_SECONDS) as first, AsyncCache(url, BUDGET_SECONDS) as second:
            await scenario(first, second)

    asyncio.run(run())


async def _filled(reader: AsyncCache) -> None:
    (found,) = await reader.look_up(["a"])
    assert isinstance(found, Lease)
    await reader.fill([Fill("a", found.token, BODY)])
    assert await reader.look_up(["a"]) == [Entry(BODY)]


@pytest.mark.parametrize("how", REFUSALS)
def test_an_entry_that_cannot_be_deleted_is_not_served(
    redis_url: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "BREAKER_SECONDS", 0.05)

    async def scenario(changing: AsyncCache, other: AsyncCache) -> None:
        await _filled(other)
        with redis.Redis.from_url(redis_url) as client:
            with REFUSALS[how](client):
                assert client.get("order:a") == BODY
                assert await other.look_up(["a"]) == ["unreachable"]
                await changing.bar(["a"])
                await changing.delete(["a"])
                assert await other.look_up(["a"]) == ["unreachable"]
            if changing._flush_task is not None:
                await asyncio.wait_for(changing._flush_task, 10)
            assert client.get("order:a") is None

    _run(redis_url, scenario)


@pytest.mark.parametrize("how", REFUSALS)
def test_lookups_stop_while_redis_refuses_and_the_refusal_is_logged(
    redis_url: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(reader: AsyncCache, _other: AsyncCache) -> None:
        with redis.Redis.from_url(redis_url) as client, REFUSALS[how](client):
            assert not reader.is_bypassed
            assert await reader.look_up(["a", "b"]) == ["unreachable", "unreachable"]
            assert reader.is_bypassed
            assert not reader.breaker.is_open
            assert not client.exists("order:a", "order:b", cache.PROBE_KEY)

    _run(redis_url, scenario)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["refused"]


def test_bars_and_deletes_work_when_redis_is_out_of_memory(redis_url: str) -> None:
    """Redis may have memory again before the delete. Without the bar, another gateway would serve the old entry."""

    async def scenario(changing: AsyncCache, other: AsyncCache) -> None:
        invalidator = CacheInvalidator(redis_url, BUDGET_SECONDS)
        await _filled(other)
        with redis.Redis.from_url(redis_url) as client:
            with _configured(client, NO_MEMORY):
                assert await changing.look_up(["a"]) == ["unreachable"]
                assert await changing.bar(["a"])
            assert await other.look_up(["a"]) == ["barred"]
            with _configured(client, NO_MEMORY):
                assert await changing.delete(["a"])
                assert client.get("order:a") is None
                assert invalidator.bar(["a"])
                assert invalidator.delete(["a"])
            assert client.get("order:a") is None
        invalidator.close()

    _run(redis_url, scenario)


def test_a_retry_of_deletes_does_not_lift_the_bar_of_the_next_change(redis_url: str) -> None:
    """The timers of order-service retry deletes in one thread while batches change orders in another."""
    invalidator = CacheInvalidator(redis_url, BUDGET_SECONDS)
    with redis.Redis.from_url(redis_url) as client:
        invalidator._pending_deletes.add(["a", "b"])
        assert invalidator.bar(["a"])
        assert invalidator.delete(())
        assert (client.get("order:a") or b"").startswith(b"barred:")
        assert len(invalidator._pending_deletes) == 0
        assert invalidator.delete(["a"])
        assert client.get("order:a") is None
    invalidator.close()


def _url_of(user: str, redis_url: str) -> str:
    parts = urlsplit(redis_url)
    return f"redis://{user}:a@{parts.hostname}:{parts.port}/0"


@pytest.mark.parametrize(
    "rights", ["+get +eval", "+get +eval +set", "+get +eval +del", "+get +eval +set +del %R~order:*"]
)
def test_a_redis_user_without_the_right_to_delete_gets_no_entries(redis_url: str, rights: str) -> None:
    words = rights.split()
    patterns = [word for word in words if "~" in word] or ["~order:*"]
    with redis.Redis.from_url(redis_url) as client:
        client.set("order:a", BODY)
        client.execute_command("ACL", "SETUSER", "reader", "reset", "on", ">a", *patterns, *set(words) - set(patterns))
        url = _url_of("reader", redis_url)

        async def scenario(reader: AsyncCache, _other: AsyncCache) -> None:
            assert await reader.look_up(["a"]) == ["unreachable"]

        try:
            _run(url, scenario)
        finally:
            client.acl_deluser("reader")


def test_the_documented_minimal_rights_are_enough(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command(
            "ACL", "SETUSER", "least", "reset", "on", ">a", "~order:*", "+eval", "+get", "+set", "+del"
        )
        url = _url_of("least", redis_url)

        async def scenario(changing: AsyncCache, other: AsyncCache) -> None:
            await _filled(other)
            assert await changing.bar(["a"])
            assert await other.look_up(["a"]) == ["barred"]
            assert await changing.delete(["a"])
            (found,) = await other.look_up(["a"])
            assert isinstance(found, Lease)

        try:
            _run(url, scenario)
        finally:
            client.acl_deluser("least")


def test_a_failed_snapshot_to_disk_counts_as_a_refusal(tmp_path: Path) -> None:
    async def scenario(reader: AsyncCache, other: AsyncCache) -> None:
        await _filled(other)
        client.config_set("save", "3600 1000000")
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 20, "the snapshot fails")
        assert client.get("order:a") == BODY
        assert await reader.look_up(["a"]) == ["unreachable"]

    # No account can create a file in /proc, not even root.
    with valkey(tmp_path / "log", dir="/proc") as url, redis.Redis.from_url(url) as client:
        _run(url, scenario)


def test_no_entry_is_served_from_a_cluster(tmp_path: Path) -> None:
    """A cluster can read one key, but a bar on two orders fails, because their keys are in different slots."""

    async def scenario(reader: AsyncCache, other: AsyncCache) -> None:
        client.set("order:a", BODY)
        assert not await other.bar(["a", "b"])
        assert await reader.look_up(["a"]) == ["unreachable"]

    # By default the bus of the cluster has a port that is 10,000 higher. Another program may use it.
    bus = str(ports.pick(["bus"], {})["bus"])
    options = {"dir": str(tmp_path), "cluster_enabled": "yes", "cluster_port": bus}
    with valkey(tmp_path / "log", **options) as url, redis.Redis.from_url(url) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok", 20, "the cluster is ready")
        _run(url, scenario)


@pytest.mark.parametrize("url_template", ["unix://{socket}?db=1", "redis://[::1]:{port}/0"])
def test_a_unix_socket_and_an_ipv6_address_work(tmp_path_factory: pytest.TempPathFactory, url_template: str) -> None:
    folder = tmp_path_factory.mktemp("v")
    socket = folder / "s"

    async def scenario(changing: AsyncCache, other: AsyncCache) -> None:
        await _filled(other)
        assert await changing.delete(["a"])
        assert isinstance((await other.look_up(["a"]))[0], Lease)

    with valkey(folder / "log", dir=str(folder), unixsocket=str(socket), bind="127.0.0.1 -::1") as url:
        _run(url_template.format(socket=socket, port=urlsplit(url).port), scenario)


def test_after_a_refusal_the_host_name_is_resolved_again(redis_url: str) -> None:
    """The host name may now lead to another server that has been promoted."""
    invalidator = CacheInvalidator(redis_url, BUDGET_SECONDS)

    async def scenario(reader: AsyncCache, other: AsyncCache) -> None:
        await _filled(reader)
        assert invalidator.delete(["b"])
        with redis.Redis.from_url(redis_url) as client:
            before = {connected["id"] for connected in client.client_list()}
            with _replica(client):
                assert not await reader.delete(["a"])
                assert not invalidator.delete(["a"])
            assert reader._flush_task is not None
            await asyncio.wait_for(reader._flush_task, 20)
            wait_until(lambda: invalidator.delete([]), 20, "the pending deletes are done")
            kept = {connected["id"] for connected in client.client_list()} & before
            assert kept == {str(client.client_id())}

    _run(redis_url, scenario)
    invalidator.close()


def test_a_delete_that_began_before_the_last_change_of_an_order_leaves_the_order_pending() -> None:
    pending = PendingDeletes()
    pending.add(["a", "b"])
    in_progress = pending.next_batch()
    pending.add(["a"])
    pending.confirm(in_progress)
    assert list(pending) == ["a"]
    pending.confirm(pending.next_batch())
    assert len(pending) == 0


FOREIGN: dict[str, Callable[[Client, str], object]] = {
    "hash": lambda client, name: client.hset(name, "a", "b"),
    "list": lambda client, name: client.rpush(name, "a"),
    "stream": lambda client, name: client.xadd(name, {"a": "b"}),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_a_key_of_another_type_is_ignored_and_blocks_no_other_order(
    redis_url: str, make: Callable[[Client, str], object]
) -> None:
    invalidator = CacheInvalidator(redis_url, BUDGET_SECONDS)

    async def scenario(changing: AsyncCache, other: AsyncCache) -> None:
        with redis.Redis.from_url(redis_url) as client:
            make(client, "order:foreign")
            make(client, cache.PROBE_KEY)
            found = await other.look_up(["foreign", "a"])
            assert found[0] == "barred"
            assert isinstance(found[1], Lease)
            await other.fill([Fill("foreign", found[1].token, BODY), Fill("a", found[1].token, BODY)])
            assert await other.look_up(["foreign", "a"]) == ["barred", Entry(BODY)]
            assert await changing.delete(["foreign", "a"])
            assert invalidator.delete(["foreign", "a"])
            assert client.type("order:foreign") != b"string"
            assert isinstance((await changing.look_up(["a"]))[0], Lease)
            # A change of the order with this id replaces the foreign key.
            assert await changing.bar(["foreign"])
            assert await changing.delete(["foreign"])
            assert not client.exists("order:foreign")

    _run(redis_url, scenario)
    invalidator.close()
