"""The order service: confirms each order whose stock is reserved."""

from datetime import UTC, datetime

import uvloop
from aiokafka import AIOKafkaProducer
from database import Order, new_statement
from messages import INVENTORY_FAILED, INVENTORY_RESERVED, ORDER_UPDATED, OrderMessage, OrderStatus, consume, publish
from sqlalchemy import update


async def handle(producer: AIOKafkaProducer, topic: str, order: OrderMessage) -> None:
    """Settle one order."""
    status = "CONFIRMED" if topic == INVENTORY_RESERVED else "FAILED"
    async with new_statement() as session:
        change = update(Order).where(Order.id == order.order_id, Order.status == "PROCESSING")
        await session.execute(change.values(status=status, updated_at=datetime.now(UTC)))
    await publish(producer, ORDER_UPDATED, OrderStatus(order_id=order.order_id, status=status))


if __name__ == "__main__":
    uvloop.run(consume("settlement", (INVENTORY_RESERVED, INVENTORY_FAILED), handle))
