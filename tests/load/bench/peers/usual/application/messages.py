"""The messages between the services, and the loop of a consumer."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from decimal import Decimal

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from pydantic import BaseModel

BROKERS = os.environ["KAFKA_BROKERS"]
BATCH_MAX = 32
"""Messages that a consumer works on at the same time, each in a transaction of its own."""

ORDER_CREATED = "order.created"
PAYMENT_AUTHORIZED = "payment.authorized"
INVENTORY_RESERVED = "inventory.reserved"
INVENTORY_FAILED = "inventory.failed"
ORDER_UPDATED = "order.updated"


class OrderMessage(BaseModel):
    """What each message says: which order, what to charge, and the units by SKU."""

    order_id: str
    amount: Decimal
    currency: str
    lines: dict[str, int]


class OrderStatus(BaseModel):
    """The message of ORDER_UPDATED."""

    order_id: str
    status: str


def new_producer() -> AIOKafkaProducer:
    """Return a producer whose records survive the loss of a broker."""
    return AIOKafkaProducer(bootstrap_servers=BROKERS, acks="all", enable_idempotence=True)


async def publish(producer: AIOKafkaProducer, topic: str, message: OrderMessage | OrderStatus) -> None:
    """Send a message, and wait until Kafka has it."""
    await producer.send_and_wait(topic, message.model_dump_json().encode(), key=message.order_id.encode())


Handle = Callable[[AIOKafkaProducer, str, OrderMessage], Awaitable[None]]


async def consume(group: str, topics: tuple[str, ...], handle: Handle) -> None:
    """Call `handle` for each message, and commit the offsets of a batch when all of its messages are handled."""
    consumer = AIOKafkaConsumer(
        *topics,
        bootstrap_servers=BROKERS,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=100,
    )
    async with new_producer() as producer, consumer:

        async def work(record: ConsumerRecord) -> None:
            await handle(producer, record.topic, OrderMessage.model_validate_json(record.value))

        while True:
            batches = await consumer.getmany(timeout_ms=1_000, max_records=BATCH_MAX)
            records = [record for batch in batches.values() for record in batch]
            if records:
                await asyncio.gather(*map(work, records))
                await consumer.commit()
