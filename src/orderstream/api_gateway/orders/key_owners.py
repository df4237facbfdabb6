"""Finds the orders that own idempotency keys (P10).

The writer uses the query when a key is taken. The routes use `KeyOwners` when a new order cannot be stored now: an
earlier request with the same key may have been stored, and its client then gets that order instead of "try again".
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Self

import psycopg
from msgspec import Struct
from psycopg.rows import args_row

from orderstream.api_gateway.batcher import Batcher, PendingCall, TryAgainError
from orderstream.api_gateway.session import Session
from orderstream.postgres.sql import load

BATCH_LIMIT = 200

SQL = load("orderstream.api_gateway.orders")


class KeyOwner(Struct, frozen=True):
    """An idempotency key, the order that has it, and the digest of the request that placed the order.

    A row of `orders_of_keys`.
    """

    key: str
    order_id: str
    request_hash: bytes


async def find_key_owners(session: Session, keys: Iterable[str]) -> dict[str, KeyOwner]:
    """Return the owners by key. A key without an order is left out. Raises TryAgainError."""
    try:
        owners = await session.execute(SQL["orders_of_keys"], {"keys": list(keys)}, args_row(KeyOwner))
    except psycopg.Error as error:
        raise TryAgainError from error
    return {owner.key: owner for owner in owners}


class KeyOwners:
    """Finds key owners in batches. Used as a context manager."""

    def __init__(self, session: Session, *, waiting_limit: int) -> None:
        self._session = session
        self._batcher = Batcher(self._find_batch, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)

    async def __aenter__(self) -> Self:
        await self._batcher.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._batcher.__aexit__(*error)

    def find(self, key: str) -> asyncio.Future[KeyOwner | None]:
        """Return the owner of a key, or None if no order has the key. Raises QueueFullError.

        While Postgres is down there is no answer. The caller must limit its own wait.
        """
        return self._batcher.submit(key, key)

    async def _find_batch(self, batch: Sequence[PendingCall[str, KeyOwner | None]]) -> None:
        owners = await find_key_owners(self._session, (call.item for call in batch))
        for call in batch:
            call.answer(owners.get(call.item))
