"""The inventory service: reserves the stock of each order that is paid."""

import uvloop
from aiokafka import AIOKafkaProducer
from database import Reservation, new_session
from messages import INVENTORY_FAILED, INVENTORY_RESERVED, PAYMENT_AUTHORIZED, OrderMessage, consume, publish
from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

# Locks the SKUs in their order, so that two orders with the same SKUs cannot deadlock. Updates all lines or too few.
RESERVE = text("""
    WITH wanted AS (
        SELECT sku, qty FROM unnest(CAST(:skus AS text[]), CAST(:quantities AS bigint[])) AS line (sku, qty)
    ), locked AS (
        SELECT sku FROM inventory WHERE sku = ANY(:skus) ORDER BY sku FOR NO KEY UPDATE
    )
    UPDATE inventory AS i
    SET available = i.available - wanted.qty, reserved = i.reserved + wanted.qty
    FROM wanted JOIN locked USING (sku)
    WHERE i.sku = wanted.sku AND i.available >= wanted.qty
""")


class OutOfStockError(Exception):
    """A line of the order has too few units."""


async def reserve(session: AsyncSession, order: OrderMessage) -> str:
    """Reserve all lines, and return the state of the reservation. An order that has one already keeps it."""
    row = insert(Reservation).values(order_id=order.order_id, state="RESERVED", lines=order.lines)
    inserted = await session.execute(row.on_conflict_do_nothing())
    if not inserted.rowcount:
        return await session.scalar(select(Reservation.state).where(Reservation.order_id == order.order_id))
    parameters = {"skus": list(order.lines), "quantities": list(order.lines.values())}
    updated = await session.execute(RESERVE, parameters)
    if updated.rowcount != len(order.lines):
        raise OutOfStockError
    return "RESERVED"


async def handle(producer: AIOKafkaProducer, _topic: str, order: OrderMessage) -> None:
    """Reserve the stock of one order."""
    try:
        async with new_session.begin() as session:
            state = await reserve(session, order)
    except OutOfStockError:
        state = "FAILED"
        async with new_session.begin() as session:
            row = insert(Reservation).values(order_id=order.order_id, state=state, lines={})
            await session.execute(row.on_conflict_do_nothing())
    await publish(producer, INVENTORY_RESERVED if state == "RESERVED" else INVENTORY_FAILED, order)


if __name__ == "__main__":
    uvloop.run(consume("inventory", (PAYMENT_AUTHORIZED,), handle))
