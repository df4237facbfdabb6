"""Cancels orders: decided by the domain, under the row lock, in one transaction with what has them undone (P5, P6, P8).

The lock decides every race: whoever has it finds the order as the last one left it. An order that settled before may be
cached, so it is barred until its change has committed. Cancelling again changes nothing, so a transaction whose COMMIT
got no answer is simply repeated.
"""

from collections.abc import Mapping, Sequence

import psycopg
from msgspec import Struct

from orderstream.api_gateway.batcher import Asked, Gathering, TryAgainError
from orderstream.api_gateway.http.conditions import NO_CONDITION, Condition, entity_tag
from orderstream.api_gateway.orders.reader import Reading, read
from orderstream.api_gateway.session import Session
from orderstream.cache import AsyncCache
from orderstream.domain.events import order_aborted, order_updated
from orderstream.domain.order import Order, OrderState, cancel, settled
from orderstream.postgres import outbox
from orderstream.postgres.connect import AsyncConnection
from orderstream.postgres.orders import SQL, changes, locked
from orderstream.postgres.outbox import OutboxRow
from orderstream.telemetry import logs
from orderstream.telemetry.tracing import Carrier

BATCH_LIMIT = 50
"""Orders cancelled in one transaction: the row locks of all are held until the last one is written."""


class Cancellation(Struct):
    """An order to cancel, the trace of the request that asked for it first, and the condition of it.

    `was_allowed` says that an attempt found the condition met. Its COMMIT may have got no answer.
    """

    order_id: str
    carrier: Carrier
    condition: Condition = NO_CONDITION
    was_allowed: bool = False

    @property
    def key(self) -> str:
        """What requests have in common that may share an answer."""
        return self.order_id if self.condition is NO_CONDITION else f"{self.order_id} {self.condition}"

    def allows(self, state: OrderState) -> bool:
        """Say whether the order may be cancelled as it is, or was cancelled by an attempt before this one."""
        if self.was_allowed and state.status == "CANCELLED":
            return True
        return self.condition.allows_change(entity_tag(state.version))


class FailedError(Exception):
    """The order has FAILED, which nothing changes any more."""


class PreconditionFailedError(Exception):
    """The order has a version that the request does not want to cancel."""


Batch = Sequence[Asked[Cancellation, Reading | None]]
Refusal = FailedError | PreconditionFailedError


class Canceller(Gathering[Cancellation, Reading | None]):
    """Cancels orders. `ask` with the cancellation's key: the answer is the order as it is now, None if there is none.

    Raises FailedError or PreconditionFailedError. While Postgres is away nothing is answered; the caller has to bound
    its own waiting.
    """

    def __init__(self, session: Session, cache: AsyncCache, *, waiting_limit: int) -> None:
        super().__init__(self._cancel, batch_limit=BATCH_LIMIT, waiting_limit=waiting_limit)
        self._session = session
        self._cache = cache

    async def _cancel(self, batch: Batch) -> None:
        try:
            async with self._session.transaction() as tx:
                refusals, readings = await self._decide(tx, [asked.item for asked in batch])
        except psycopg.Error as error:
            logs.get().error("cancel_refused_by_postgres", error=str(error))
            raise TryAgainError from error
        # Not only those that changed: an attempt before this one may have barred them, and its COMMIT got no answer.
        await self._cache.delete(list(readings))
        for asked in batch:
            refusal = refusals.get(asked.item.key)
            if refusal is not None:
                asked.fail(refusal)
            else:
                asked.answer(readings.get(asked.item.order_id))

    async def _decide(
        self, tx: AsyncConnection, cancellations: Sequence[Cancellation]
    ) -> tuple[dict[str, Refusal], dict[str, Reading]]:
        """Return the refusals by the keys of their cancellations, and how those orders stand that are cancelled now."""
        ids = list(dict.fromkeys(cancellation.order_id for cancellation in cancellations))
        cursor = await tx.execute(SQL["lock_orders"], {"ids": ids})
        before, now = locked(await cursor.fetchall())
        after: dict[str, Order] = {}
        carriers: dict[str, Carrier] = {}
        refusals: dict[str, Refusal] = {}
        for cancellation in cancellations:
            order_id = cancellation.order_id
            order = after.get(order_id) or before.get(order_id)
            if order is None or now is None:
                continue
            state = cancel(order.state)
            if state is None:
                refusals[cancellation.key] = FailedError(order_id)
            elif not cancellation.allows(order.state):
                refusals[cancellation.key] = PreconditionFailedError(order_id)
            else:
                cancellation.was_allowed = True
                after[order_id] = order.with_state(state, now, abort=True)
                carriers.setdefault(order_id, cancellation.carrier)
        changed = [order for order in after.values() if order is not before[order.order_id]]
        await self._cache.bar([order.order_id for order in changed if settled(before[order.order_id].state.status)])
        await _write(tx, changed, carriers)
        return refusals, await read(tx, list(after))


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
