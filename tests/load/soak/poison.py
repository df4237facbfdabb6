"""Writes invalid records to every topic. Each has a name, by which its dead letter is recognized (P9)."""

import contextlib
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from msgspec import Struct

from orderstream.domain.events import (
    InventoryFailed,
    InventoryReleased,
    InventoryReserved,
    Item,
    OrderAborted,
    OrderCreated,
    Payload,
    PaymentAuthorized,
    PaymentFailed,
    PaymentVoided,
    StockLine,
    build,
    topic_of,
)
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.order_service.handler import OrderHandler
from orderstream.payment_worker.handler import PaymentHandler
from orderstream.settings import Settings

HEADER = "soak-poison"
CONSUMERS = {handler.group: handler.topics for handler in (PaymentHandler, InventoryHandler, OrderHandler)}
_LINES = (StockLine(sku="SOAK-1", qty=1),)
_ITEMS = (Item(sku="SOAK-1", qty=1, price=Decimal(1)),)
_PAYLOADS: tuple[Callable[[str], Payload], ...] = (
    lambda order_id: OrderCreated(order_id=order_id, user_id="poison", items=_ITEMS, amount=Decimal(1), currency="USD"),
    lambda order_id: OrderAborted(order_id=order_id, status="CANCELLED"),
    lambda order_id: PaymentAuthorized(order_id=order_id, items=_ITEMS, amount=Decimal(1), currency="USD"),
    lambda order_id: PaymentFailed(order_id=order_id, reason="PAYMENT_DECLINED"),
    lambda order_id: PaymentVoided(order_id=order_id),
    lambda order_id: InventoryReserved(order_id=order_id, items=_LINES),
    lambda order_id: InventoryFailed(order_id=order_id, reason="OUT_OF_STOCK", skus=("SOAK-1",)),
    lambda order_id: InventoryReleased(order_id=order_id, items=_LINES),
)
_SPOILED: dict[str, dict[str, object]] = {
    "unknown_type": {"type": "order.eaten"},
    "unknown_version": {"version": 99},
    "wrong_payload": {"payload": {"items": "none"}},
    "large": {"payload": "x" * 900_000},
}
_KINDS = ("not_json", "no_key", "unknown_type", "unknown_version", "wrong_payload", "unknown_order", "large")


class Poison(Struct, frozen=True):
    """An invalid record. `acknowledged` is the monotonic time at which Kafka acknowledged it."""

    name: str
    topic: str
    acknowledged: float


class Poisoner:
    """Writes poison. A record that Kafka did not acknowledge is not expected in the dead letters."""

    def __init__(self, settings: Settings, chance: random.Random) -> None:
        ours = {"bootstrap.servers": settings.kafka_brokers, "message.timeout.ms": 20_000, "log_level": 0}
        self._producer = Producer({**ours, **settings.kafka_options})
        self._chance = chance
        self._count = 0
        self.put: list[Poison] = []

    def put_one(self) -> None:
        """Write one random record. Does not wait."""
        order_id = str(uuid.UUID(int=self._chance.getrandbits(128)))
        event = build(self._chance.choice(_PAYLOADS)(order_id), datetime.now(UTC))
        kind = self._chance.choice(_KINDS)
        name, where = f"{kind}-{self._count}", topic_of(event.type)
        self._count += 1
        key, value = _spoiled(kind, order_id, msgspec.to_builtins(event))

        def acknowledged(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                self.put.append(Poison(name, where, time.monotonic()))

        with contextlib.suppress(KafkaException):  # the topic is being lost
            self._producer.produce(where, value, key, on_delivery=acknowledged, headers=[(HEADER, name)])
        self._producer.poll(0)

    def finish(self) -> None:
        """Wait until Kafka has acknowledged or refused every record."""
        self._producer.flush(20)


def _spoiled(kind: str, order_id: str, event: dict[str, object]) -> tuple[str | None, bytes]:
    """Return key and value of a record with one error."""
    match kind:
        case "not_json":
            return order_id, b"{" * 50
        case "no_key":
            return None, msgspec.json.encode(event)
        case _:
            return order_id, msgspec.json.encode(event | _SPOILED.get(kind, {}))
