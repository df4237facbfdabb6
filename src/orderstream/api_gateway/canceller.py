"""Cancels orders: decided by the domain, under the row lock, in one transaction with what has them undone (P5, P6, P8).

The lock decides every race: whoever has it finds the order as the last one left it. An order that settled before may be
cached, so it is barred until its change has committed. Cancelling again changes nothing, so a transaction whose COMMIT
got no answer is simply repeated.
"""

from collections.abc import Mapping, Sequence

import psycopg
from msgspec import Struct

from orderstream.api_gateway.gathering import Asked, Gathering, TryAgainError
from orderstream.api_gateway.reader import Reading, read
from orderstream.api_gateway.session import Session
from orderstream.cache import AsyncCache
from orderstream.domain.events import order_aborted, order_updated
from orderstream.domain.order import Order, cancel, settled
from orderstream.postgres import outbox
from orderstream.postgres.connect import AsyncConnection
from orderstream.postgres.orders import SQL, changes, locked
from orderstream.postgres.outbox import OutboxRow
from orderstream.telemetry import logs
from orderstream.telemetry.tracing import Carrier

BATCH_LIMIT = 50
"""Orders cancelled in one transaction: the row locks of all are held until the last one is written."""


class Cancellation(Struct, frozen=True):
    """An order to cancel, and the trace of who asked for it first."""

    order_id: str
    carrier: Carrier


class FailedError(Exception):
    """The order has FAILED, which nothing changes any more."""


Batch = Sequence[Asked[Cancellation, Reading | None]]


class Canceller(Gathering[Cancellation, Reading | None]):
    """Cancels orders. `ask` with the order's id: the answer is the order as it is now, None if there is none.

    Raises FailedError. While Postgres is away nothing is answered; whoever asks has to bound their own waiting.
    """

    def __init__(self, session: Session, cache: AsyncCache, *, waiting_limit: int) -> None:
        super().__init__(self._cancel, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)
        self._session = session
        self._cache = cache

    async def _cancel(self, batch: Batch) -> None:
        try:
            async with self._session.transaction() as tx:
                known, readings = await self._decide(tx, {asked.item.order_id: asked.item.carrier for asked in batch})
        except psycopg.Error as error:
            logs.get().error("cancel_refused_by_postgres", error=str(error))
            raise TryAgainError from error
        # Not only those that changed: an attempt before this one may have barred them, and its COMMIT got no answer.
        await self._cache.delete(list(readings))
        for asked in batch:
            order_id = asked.item.order_id
            if order_id in known and order_id not in readings:
                asked.fail(FailedError(order_id))
            else:
                asked.answer(readings.get(order_id))

    async def _decide(
        self, tx: AsyncConnection, carriers: Mapping[str, Carrier]
    ) -> tuple[set[str], dict[str, Reading]]:
        """Return which orders there are, and how those stand that are cancelled now."""
        cursor = await tx.execute(SQL["lock_orders"], {"ids": list(carriers)})
        orders, now = locked(await cursor.fetchall())
        cancelled = [
            (order, order.moved(state, now, abort=True))
            for order in orders.values()
            if now is not None and (state := cancel(order.state)) is not None
        ]
        changed = [(before, after) for before, after in cancelled if after is not before]
        await self._cache.bar([before.order_id for before, _ in changed if settled(before.state.status)])
        await _write(tx, [after for _, after in changed], carriers)
        return set(orders), await read(tx, [after.order_id for _, after in cancelled])


async def _write(tx: AsyncConnection, orders: Sequence[Order], carriers: Mapping[str, Carrier]) -> None:
    """Write cancelled orders, tell how they stand, have them undone, and wake the relay."""
    if not orders:
        return
    await tx.execute(SQL["update_orders"], changes(orders))
    rows = [
        OutboxRow(event(order), *carriers[order.order_id])
        for order in orders
        for event in (order_updated, order_aborted)
    ]
    await tx.execute(outbox.SQL["append_to_outbox"], outbox.parameters(rows))
    await tx.execute(outbox.SQL["wake_relay"])
