"""Finds the orders that idempotency keys have (P10), for requests that cannot be stored now but may have been before.

A client that sends an order again is not to be told to try later when its order is there.
"""

from collections.abc import Sequence

import psycopg
from msgspec import Struct

from orderstream.api_gateway.batcher import Asked, Gathering, TryAgainError
from orderstream.api_gateway.session import Session
from orderstream.postgres.sql import load

BATCH_LIMIT = 200

SQL = load("orderstream.api_gateway.orders")


class KeyOwner(Struct, frozen=True):
    """The order that has a key, and the digest of what was asked for."""

    order_id: str
    request_hash: bytes


class KeyOwners(Gathering[str, KeyOwner | None]):
    """Looks keys up. `ask` with a key: the answer is its order, None if no order has it.

    While Postgres is away nothing is answered; the caller has to bound its own waiting.
    """

    def __init__(self, session: Session, *, waiting_limit: int) -> None:
        super().__init__(self._look_up, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)
        self._session = session

    async def _look_up(self, batch: Sequence[Asked[str, KeyOwner | None]]) -> None:
        try:
            rows = await self._session.execute(SQL["orders_of_keys"], {"keys": [asked.item for asked in batch]})
        except psycopg.Error as error:
            raise TryAgainError from error
        owners = {key: KeyOwner(order_id, request_hash) for key, order_id, request_hash in rows}
        for asked in batch:
            asked.answer(owners.get(asked.item))
