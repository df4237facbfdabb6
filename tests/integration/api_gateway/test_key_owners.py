"""A request with a used key gets its order, also while no new order can be accepted (P10)."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from orderstream.api_gateway.orders import writer as writer_module
from orderstream.http_server.routes_by_path import RoutesByPath
from orderstream.postgres.connect import Connection, connect
from tests.integration.api_gateway.application import application
from tests.support.asgi import Answer, call
from tests.support.bodies import README, order
from tests.support.servers import Servers

JSON = {"content-type": "application/json"}
WAIT_SECONDS = 10


async def post(api: RoutesByPath, key: str | None = None, body: bytes = README) -> Answer:
    return await call(api, "POST", "/orders", [body], JSON if key is None else {**JSON, "idempotency-key": key})


def type_of(answer: Answer) -> str:
    return str(json.loads(answer.body)["type"]).removeprefix("urn:orderstream:problem:")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition is true, at most WAIT_SECONDS."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not await condition():  # noqa: ASYNC110 - Postgres sets no Event
            await asyncio.sleep(0.01)


@contextmanager
def no_order_is_stored(postgres_url: str) -> Iterator[None]:
    """Block every insert into `orders`, but no read."""
    with connect(postgres_url, "lock") as holder, holder.transaction():
        holder.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
        yield


async def _fill_the_outbox(api: RoutesByPath) -> None:
    async def full() -> bool:
        answer = await post(api)
        return answer.status == 503 and type_of(answer) == "outbox-full"

    await until(full)


async def _assert_keys_are_looked_up(api: RoutesByPath, first: Answer, refusal: str) -> None:
    again = await post(api, "known", order(amount='"129.00"'))
    assert (again.status, again.body) == (201, first.body)
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotent-replayed"] == "true"
    other = await post(api, "known", order(amount="1"))
    assert (other.status, type_of(other)) == (422, "idempotency-key-reused")
    for key in ("unknown", None):
        refused = await post(api, key)
        assert (refused.status, type_of(refused)) == (503, refusal)
        assert "This request stored nothing." in json.loads(refused.body)["detail"]
        assert "retry-after" in refused.headers


def test_a_used_key_gets_its_order_while_the_outbox_is_full(
    postgres_url: str, connection: Connection, servers: Servers
) -> None:
    async def scenario() -> None:
        async with application(postgres_url, servers.redis_url, outbox_limit=2) as api:
            first = await post(api, "known")
            await _fill_the_outbox(api)
            await _assert_keys_are_looked_up(api, first, "outbox-full")

    asyncio.run(scenario())
    rows = connection.execute("SELECT count(*) FROM orders WHERE idempotency_key IS NOT NULL").fetchall()
    assert rows == [(1,)]


@pytest.mark.parametrize("limited", ["orders", "lines"])
def test_a_used_key_gets_its_order_while_the_queue_is_full(
    postgres_url: str, connection: Connection, servers: Servers, limited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 2
    if limited == "lines":
        monkeypatch.setattr(writer_module, "WAITING_LINES_MAX", limit)
        limit = 100

    async def scenario() -> None:
        async with application(postgres_url, servers.redis_url, waiting_limit=limit) as api:
            first = await post(api, "known")
            with no_order_is_stored(postgres_url):
                waiting = [asyncio.create_task(post(api))]
                await until(lambda: _is_blocked(connection))
                waiting += [asyncio.create_task(post(api)) for _ in range(3)]
                await until(lambda: _any_done(waiting))
                await _assert_keys_are_looked_up(api, first, "unavailable")
            for answer in await asyncio.gather(*waiting):
                assert answer.status == 201 or "This request stored nothing." in answer.body.decode()

    asyncio.run(scenario())


async def _is_blocked(connection: Connection) -> bool:
    return connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchall() != [(0,)]


async def _any_done(tasks: list[asyncio.Task[Answer]]) -> bool:
    return any(task.done() for task in tasks)


def test_an_order_whose_store_timed_out_may_still_be_stored(
    postgres_url: str, connection: Connection, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response does not claim that nothing was stored. Here the order is stored after the response."""
    monkeypatch.setattr("orderstream.api_gateway.routes.BUDGET_SECONDS", 0.5)

    def stored() -> Any:
        return connection.execute("SELECT id FROM orders").fetchall()

    async def scenario() -> None:
        async with application(postgres_url, servers.redis_url) as api:
            with no_order_is_stored(postgres_url):
                refused = await post(api, "late")
                assert stored() == []
            assert refused.status == 503
            detail = json.loads(refused.body)["detail"]
            assert "may be stored or not" in detail
            assert "nothing" not in detail

            async def is_stored() -> bool:
                return bool(stored())

            await until(is_stored)
            again = refused

            async def is_answered() -> bool:
                nonlocal again
                again = await post(api, "late")
                return again.status != 503

            await until(is_answered)
            assert json.loads(again.body) == {"orderId": stored()[0][0]}

    asyncio.run(scenario())
