"""The HTTP API: writes the order, commits, and publishes its message."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer
from database import Order, OrderItem, engine, new_session
from fastapi import FastAPI, Request, status
from messages import ORDER_CREATED, OrderMessage, new_producer, publish
from order import Placed, received
from pydantic import BaseModel, Field


class Accepted(BaseModel):
    """The answer to POST /orders."""

    order_id: str = Field(serialization_alias="orderId")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Hold a producer and the connections to the database."""
    async with new_producer() as producer:
        app.state.producer = producer
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=status.HTTP_201_CREATED)
async def place_order(placed: Placed, request: Request) -> Accepted:
    """Accept an order. If this process dies after the commit, the message is never published."""
    order = received(placed)
    row = Order(
        id=order.id,
        user_id=order.userId,
        amount=order.amount,
        currency=order.currency,
        status="PROCESSING",
        created_at=order.received_at,
        updated_at=order.received_at,
        items=[OrderItem(sku=item.sku, qty=item.qty, price=item.price) for item in order.items],
    )
    async with new_session.begin() as session:
        session.add(row)
    producer: AIOKafkaProducer = request.app.state.producer
    lines = {item.sku: item.qty for item in order.items}
    message = OrderMessage(order_id=order.id, amount=order.amount, currency=order.currency, lines=lines)
    await publish(producer, ORDER_CREATED, message)
    return Accepted(order_id=order.id)
