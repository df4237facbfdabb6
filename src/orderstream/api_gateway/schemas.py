"""The types of the HTTP API. The OpenAPI document is generated from them. JSON names are camelCase. Money is exact."""

from datetime import datetime
from typing import Annotated, TypeVar

from msgspec import Meta, Raw, Struct

from orderstream.domain.events import AnyReason, AnyState, AnyStatus
from orderstream.domain.limits import (
    ITEMS_MAX,
    MONEY_INTEGER_DIGITS_MAX,
    NUMBER_MAX_CHARACTERS,
    QTY_MAX,
    QTY_MIN,
    SKU_MAX_CHARACTERS,
    USER_ID_MAX_CHARACTERS,
)
from orderstream.domain.money import MINOR_DIGITS

T = TypeVar("T")

_MONEY_PATTERN = rf"^(?=[0-9.]*[1-9])0*[0-9]{{1,{MONEY_INTEGER_DIGITS_MAX}}}(\.[0-9]+)?$"
MoneyIn = Annotated[
    Raw,
    Meta(
        description=f"More than 0, with at most {MONEY_INTEGER_DIGITS_MAX} digits before the point, and after it at"
        " most as many as the currency has. A number, or a string in plain decimal notation, of at most"
        f" {NUMBER_MAX_CHARACTERS} characters. It is read exactly as written.",
        extra_json_schema={
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 10**MONEY_INTEGER_DIGITS_MAX},
                {"type": "string", "pattern": _MONEY_PATTERN, "maxLength": NUMBER_MAX_CHARACTERS},
            ]
        },
    ),
]
MoneyOut = Annotated[Raw, Meta(description="Exact decimal.", extra_json_schema={"type": "number"})]
_NO_NUL = {"pattern": "^[^\\u0000]*$"}
UserId = Annotated[str, Meta(min_length=1, max_length=USER_ID_MAX_CHARACTERS, extra_json_schema=_NO_NUL)]
Sku = Annotated[str, Meta(min_length=1, max_length=SKU_MAX_CHARACTERS, extra_json_schema=_NO_NUL)]
Currency = Annotated[
    str,
    Meta(
        description="ISO 4217 code of an active currency, such as USD.",
        examples=["USD"],
        extra_json_schema={"enum": sorted(MINOR_DIGITS)},
    ),
]
ItemsOf = Annotated[list[T], Meta(min_length=1, max_length=ITEMS_MAX)]
Quantity = Annotated[
    int,
    Meta(
        ge=QTY_MIN,
        le=QTY_MAX,
        description=f"A whole number, also written as 1.0, of at most {NUMBER_MAX_CHARACTERS} characters.",
    ),
]


class OrderItem(Struct, frozen=True):
    """One line of a new order. Lines with the same SKU and the same price are merged."""

    sku: Sku
    qty: Quantity
    price: MoneyIn


class OrderRequest(Struct, frozen=True, rename="camel"):
    """A new order. `amount` is charged. It may differ from the sum of the lines."""

    user_id: UserId
    items: ItemsOf[OrderItem]
    amount: MoneyIn
    currency: Currency


class OrderAccepted(Struct, frozen=True, rename="camel"):
    """The order is stored and will settle."""

    order_id: str


class ItemView(Struct, frozen=True):
    """One line of an order."""

    sku: str
    qty: int
    price: MoneyOut


class PaymentView(Struct, frozen=True, rename="camel"):
    """The state of the payment, and the time of its decision."""

    state: AnyState
    decided_at: datetime | None


class StockView(Struct, frozen=True, rename="camel"):
    """The state of the reservation, and the time of its decision."""

    state: AnyState
    decided_at: datetime | None


class OrderView(Struct, frozen=True, rename="camel"):
    """The current state of an order. `version` grows with every change."""

    order_id: str
    user_id: str
    items: list[ItemView]
    amount: MoneyOut
    currency: str
    status: AnyStatus
    failure_reason: AnyReason | None
    version: int
    created_at: datetime
    updated_at: datetime
    payment: PaymentView
    stock: StockView
