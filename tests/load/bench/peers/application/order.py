"""An order of `POST /orders`, with the rules of OrderStream's gateway. Several applications use it."""

import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, Field, field_validator

Money = Annotated[Decimal, Field(gt=0, max_digits=14, decimal_places=2)]


class Item(BaseModel):
    """A line of an order."""

    sku: Annotated[str, Field(min_length=1, max_length=64)]
    qty: Annotated[int, Field(ge=1, le=1_000_000)]
    price: Money


class Placed(BaseModel):
    """The body of `POST /orders`. Two lines of one SKU are merged if their prices are equal."""

    userId: Annotated[str, Field(min_length=1, max_length=128)]  # noqa: N815 - the name in JSON
    items: Annotated[list[Item], Field(min_length=1, max_length=1_000)]
    amount: Money
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]

    @field_validator("items")
    @classmethod
    def _merged(cls, items: list[Item]) -> list[Item]:
        by_sku: dict[str, Item] = {}
        for item in items:
            first = by_sku.setdefault(item.sku, item)
            if first is item:
                continue
            if first.price != item.price:
                raise ValueError(f"two prices for {item.sku}")
            first.qty += item.qty
        return list(by_sku.values())


class Order(Placed):
    """An order with its id, and the time at which the HTTP server received it."""

    id: str
    received_at: datetime


def received(placed: Placed) -> Order:
    """Return the order of a request that arrives now."""
    return Order.model_construct(**dict(placed), id=str(uuid.uuid4()), received_at=datetime.now(UTC))


class Authorization(BaseModel):
    """The answer of the payment provider."""

    order_id: str
    amount: Decimal


def authorize(order: Order) -> Authorization:
    """Authorize the payment of an order. This provider says yes at once. The order id is the idempotency key."""
    return Authorization(order_id=order.id, amount=order.amount)
