"""Runs the statements on a pool of asyncpg connections, for the contestants that have an event loop."""

import asyncpg
from order import Authorization, Order
from statements import CONFIRM, FAIL, RECORD, to_confirm, to_fail, to_record


class Store:
    """The tables of the orders."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    async def connect(cls, postgres_url: str, connections: int) -> "Store":
        """Open a pool with a fixed number of connections."""
        return cls(await asyncpg.create_pool(postgres_url, min_size=connections, max_size=connections))

    async def close(self) -> None:
        """Close the pool."""
        await self._pool.close()

    async def record(self, order: Order) -> None:
        """Record an order and its items."""
        await self._pool.execute(RECORD, *to_record(order))

    async def settle(self, order: Order, payment: Authorization) -> None:
        """Reserve the stock and confirm the order, or fail it if the stock is too small."""
        try:
            confirmed = await self._pool.fetchval(CONFIRM, *to_confirm(order, payment))
        except asyncpg.CheckViolationError:
            confirmed = None
        if confirmed is None:
            await self._pool.execute(FAIL, *to_fail(order, payment))
