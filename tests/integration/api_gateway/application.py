"""The whole API in this process, on a real database and Redis, with parts that a test may replace."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from orderstream.api_gateway.orders.backpressure import OutboxLimit
from orderstream.api_gateway.orders.canceller import Canceller
from orderstream.api_gateway.orders.key_owners import KeyOwners
from orderstream.api_gateway.orders.reader import Reader
from orderstream.api_gateway.orders.waiters import Waiters
from orderstream.api_gateway.orders.writer import Writer
from orderstream.api_gateway.routes import Health, OrderHandlers, router
from orderstream.api_gateway.session import Session
from orderstream.cache import AsyncCache
from orderstream.http_server.routes_by_path import RoutesByPath
from orderstream.telemetry.tracing import Tracer

CACHE_BUDGET_SECONDS = 1.0
"""More than operators have, because a busy machine may delay an answer of Redis."""


@asynccontextmanager
async def application(
    postgres_url: str,
    redis_url: str,
    *,
    waiting_limit: int = 100,
    outbox_limit: int = 1_000,
    budget_seconds: float = 5,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[RoutesByPath]:
    """Run the API. `budget_seconds` limits a transaction. `clock` gives the time in new order ids."""
    async with (
        AsyncCache(redis_url, CACHE_BUDGET_SECONDS) as cache,
        Session(postgres_url, "writes", budget_seconds) as writes,
        Session(postgres_url, "reads") as reads,
        Session(postgres_url, "cancels", budget_seconds) as cancels,
        Session(postgres_url, "others") as others,
        Writer(writes, waiting_limit=waiting_limit) as writer,
        Reader(reads, cache, waiting_limit=waiting_limit) as reader,
        Canceller(cancels, cache, waiting_limit=waiting_limit) as canceller,
        Waiters(others) as waiters,
        OutboxLimit(others, outbox_limit) as outbox,
        KeyOwners(reads, waiting_limit=waiting_limit) as key_owners,
    ):
        yield router(
            OrderHandlers(writer, reader, canceller, waiters, outbox, key_owners=key_owners, clock=clock),
            Health(others),
            Tracer(None, 0),
        )
