"""The payment service: authorizes the payment of each new order."""

import uvloop
from aiokafka import AIOKafkaProducer
from database import Payment, new_statement
from messages import ORDER_CREATED, PAYMENT_AUTHORIZED, OrderMessage, consume, publish
from sqlalchemy.dialects.postgresql import insert


async def authorize(order_id: str) -> str:
    """Ask the provider, which answers at once. The order id is the idempotency key."""
    del order_id
    return "AUTHORIZED"


async def handle(producer: AIOKafkaProducer, _topic: str, order: OrderMessage) -> None:
    """Authorize one payment."""
    state = await authorize(order.order_id)
    async with new_statement() as session:
        row = insert(Payment).values(order_id=order.order_id, state=state, amount=order.amount)
        await session.execute(row.on_conflict_do_nothing())
    await publish(producer, PAYMENT_AUTHORIZED, order)


if __name__ == "__main__":
    uvloop.run(consume("payment", (ORDER_CREATED,), handle))
