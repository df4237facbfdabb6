"""Many orders are one request to Valkey: a lookup, a fill, a bar or a delete, and the requests of their callers."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest
import redis

from orderstream.cache import AsyncCache, CacheInvalidator, Entry, Fill, Lease
from orderstream.order_service.handler import OrderHandler
from orderstream.postgres.connect import Connection
from tests.integration.decisions import orders
from tests.integration.decisions.orders import place, record, result
from tests.integration.set_based.counting import FEW, MANY

BUDGET_SECONDS = 5.0

Case = Callable[[str, list[str]], None]
"""Does work for these orders, with a Valkey that is given by its URL."""


def _requests(redis_url: str, work: Callable[[], None]) -> tuple[int, int]:
    """Return how many scripts the work has run, and how often Valkey has read from a connection.

    Valkey also counts the commands inside a script as commands. Therefore its reads count direct commands.
    """
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        work()
        scripts = sum(
            client.info("commandstats").get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha")
        )
        return scripts, client.info("stats")["total_reads_processed"]


def _async(scenario: Callable[[AsyncCache, list[str]], Awaitable[None]]) -> Case:
    async def run(redis_url: str, ids: list[str]) -> None:
        async with AsyncCache(redis_url, BUDGET_SECONDS) as cache:
            await scenario(cache, ids)

    return lambda redis_url, ids: asyncio.run(run(redis_url, ids))


async def _look_up_and_fill(cache: AsyncCache, ids: list[str]) -> None:
    leases = [found for found in await cache.look_up(ids) if isinstance(found, Lease)]
    await cache.fill([Fill(key, lease.token, b"{}") for key, lease in zip(ids, leases, strict=True)])
    assert await cache.look_up(ids) == [Entry(b"{}")] * len(ids)


async def _bar_and_delete(cache: AsyncCache, ids: list[str]) -> None:
    assert await cache.bar(ids)
    assert await cache.look_up(ids) == ["barred"] * len(ids)
    assert await cache.delete(ids)
    assert all(isinstance(found, Lease) for found in await cache.look_up(ids))


def _invalidate(redis_url: str, ids: list[str]) -> None:
    cache = CacheInvalidator(redis_url, BUDGET_SECONDS)
    assert cache.bar(ids)
    assert cache.delete(ids)
    cache.close()


CASES = {
    "lookups and fills": _async(_look_up_and_fill),
    "bars and deletes of the gateway": _async(_bar_and_delete),
    "bars and deletes of order-service": _invalidate,
}


def _assert_one_request(redis_url: str, case: Case) -> None:
    case(redis_url, [str(uuid4())])
    few, many = (
        _requests(redis_url, lambda: case(redis_url, [str(uuid4()) for _ in range(items)]))  # noqa: B023 - called at once
        for items in (FEW, MANY)
    )
    assert few[0] > 0, "no script ran"
    assert many[0] == few[0]
    # Valkey may need two reads for one request. A request for each order would add 39.
    assert many[1] < few[1] + MANY // 2


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cache(redis_url: str, case: Case) -> None:
    _assert_one_request(redis_url, case)


def test_order_service_bars_and_deletes_the_orders_of_a_batch_together(redis_url: str, connection: Connection) -> None:
    """The orders have failed before, and their payments are authorized late."""

    def case(url: str, keys: list[str]) -> None:
        ids = [place(connection, order_id=key) for key in keys]
        connection.execute(
            "UPDATE orders SET status = 'FAILED', failure_reason = 'TIMED_OUT', aborted_at = now() WHERE id = ANY(%s)",
            (ids,),
        )
        events = [result("payment.authorized", order_id) for order_id in ids]
        record(connection, *events)
        cache = CacheInvalidator(url, BUDGET_SECONDS)
        decided = orders.decide(OrderHandler(cache, ()), connection, *events)
        assert {outgoing.cause.order_id for outgoing in decided.emit} == set(ids)
        cache.close()

    _assert_one_request(redis_url, case)
