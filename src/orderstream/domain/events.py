"""The events of OrderStream: their payloads, their topics and their builders.

An event is a fact about one order. Its id is derived from the order and the type, and `occurredAt` is a recorded time.
A service that repeats an event therefore repeats it exactly (P7).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from hashlib import sha1
from typing import Annotated, Generic, TypeVar, get_args
from uuid import UUID

from msgspec import Meta, Struct

from orderstream.domain.limits import QTY_MIN
from orderstream.domain.order import FailureReason, Order, PaymentFact, Status, StockFact

NAMESPACE = UUID("6f1d1c0e-5a55-5d0b-9d6e-0d7a3b1f4c21")
"""Namespace of the name-based event ids. A change of it would change the id of every event."""

_NAMESPACE_BYTES = NAMESPACE.bytes
VERSION = 1

Quantity = Annotated[int, Meta(ge=QTY_MIN)]
"""Units of a SKU."""
Money = Annotated[Decimal, Meta(extra_json_schema={"pattern": "^[0-9]+(\\.[0-9]+)?$"})]
"""A positive amount, in JSON a string of plain digits."""
EventId = Annotated[str, Meta(min_length=36, max_length=36, extra_json_schema={"format": "uuid"})]
"""A UUID as text, in its usual form. Every event has one, and no code calculates with it."""
Time = Annotated[datetime, Meta(tz=True, extra_json_schema={"pattern": "Z$"})]
"""An instant, in JSON RFC 3339 in UTC."""

_OPEN = "The values of this version are the examples. A newer version may add others: pass them on."
AnyReason = Annotated[str, Meta(description=_OPEN, examples=[*get_args(FailureReason)])]
AnyStatus = Annotated[str, Meta(description=_OPEN, examples=[*get_args(Status)])]
AnyState = Annotated[str, Meta(description=_OPEN, examples=[*get_args(PaymentFact), *get_args(StockFact)[1:]])]
"""Open sets. During an upgrade, an older reader receives new values and must accept their events (decision 0029)."""


class Payload(Struct, frozen=True, kw_only=True, rename="camel"):
    """The domain fields of an event; names are camelCase in JSON, money is a decimal string."""

    order_id: str


P_co = TypeVar("P_co", bound=Payload, covariant=True)


class Event(Struct, Generic[P_co], frozen=True, kw_only=True, rename="camel"):
    """The envelope around every payload. `correlationId` is the order id, which is also the key in Kafka."""

    type: str
    version: int
    id: EventId
    occurred_at: Time
    correlation_id: str
    payload: P_co


class Item(Struct, frozen=True, kw_only=True):
    """One line of an order: `qty` units of a SKU at `price` each, in the order's currency."""

    sku: str
    qty: Quantity
    price: Money


class StockLine(Struct, frozen=True, kw_only=True):
    """One line of a reservation."""

    sku: str
    qty: Quantity


class OrderCreated(Payload, frozen=True, kw_only=True, rename="camel"):
    """The gateway accepted an order. `amount` is the charge. It may differ from the sum of the lines."""

    user_id: str
    items: tuple[Item, ...]
    amount: Money
    currency: str


class OrderAborted(Payload, frozen=True, kw_only=True, rename="camel"):
    """The command to compensate this order: void its payment and release its stock."""

    status: AnyStatus
    reason: AnyReason | None = None


class PaymentAuthorized(Payload, frozen=True, kw_only=True, rename="camel"):
    """The provider holds the amount for us."""

    items: tuple[Item, ...]
    amount: Money
    currency: str


class PaymentFailed(Payload, frozen=True, kw_only=True, rename="camel"):
    """No money was taken, and none will be."""

    reason: AnyReason


class PaymentVoided(Payload, frozen=True, kw_only=True, rename="camel"):
    """The charge was undone, and the provider can take no money any more. `reason` is that of the abort."""

    reason: AnyReason | None = None


class InventoryReserved(Payload, frozen=True, kw_only=True, rename="camel"):
    """All lines of the order are reserved."""

    items: tuple[StockLine, ...]


class InventoryFailed(Payload, frozen=True, kw_only=True, rename="camel"):
    """No line is reserved. `skus` were unknown or short."""

    reason: AnyReason
    skus: tuple[str, ...]


class InventoryReleased(Payload, frozen=True, kw_only=True, rename="camel"):
    """No line is reserved any more, and none will be. `items` were given back. `reason` is that of the abort."""

    items: tuple[StockLine, ...]
    reason: AnyReason | None = None


class Decided(Struct, frozen=True, kw_only=True, rename="camel"):
    """A fact, and the time at which the service recorded it."""

    state: AnyState
    decided_at: Time | None = None


class OrderUpdated(Payload, frozen=True, kw_only=True, rename="camel"):
    """The current row of the order. Versions may have gaps. Readers keep the highest version."""

    user_id: str
    amount: Money
    currency: str
    status: AnyStatus
    failure_reason: AnyReason | None
    payment: Decided
    stock: Decided
    version: int
    created_at: Time
    updated_at: Time


PAYLOADS: dict[str, type[Payload]] = {
    "order.created": OrderCreated,
    "order.aborted": OrderAborted,
    "order.updated": OrderUpdated,
    "payment.authorized": PaymentAuthorized,
    "payment.failed": PaymentFailed,
    "payment.voided": PaymentVoided,
    "inventory.reserved": InventoryReserved,
    "inventory.failed": InventoryFailed,
    "inventory.released": InventoryReleased,
}
"""Event type -> payload. An event travels in the topic `<type>.v<version>`."""

_TYPES = {payload: event_type for event_type, payload in PAYLOADS.items()}


def topic_of(event_type: str) -> str:
    """Return the topic of an event type."""
    return f"{event_type}.v{VERSION}"


TOPICS: tuple[str, ...] = tuple(topic_of(event_type) for event_type in PAYLOADS)


def build(payload: Payload, occurred_at: datetime) -> Event[Payload]:
    """Put a payload into its envelope. `occurred_at` is the time that was recorded with the fact, not of sending."""
    return Event(
        type=_TYPES[type(payload)],
        version=VERSION,
        id=id_of(payload),
        occurred_at=occurred_at,
        correlation_id=payload.order_id,
        payload=payload,
    )


def id_of(payload: Payload) -> str:
    """Return the id of the event with this payload. Each version of an order has an order.updated of its own."""
    name = f"{payload.order_id}:{_TYPES[type(payload)]}"
    if isinstance(payload, OrderUpdated):
        name += f":{payload.version}"
    return event_id(name)


def event_id(name: str) -> str:
    """Return the UUIDv5 (RFC 9562, 5.5) of a name in NAMESPACE. This takes a fifth of the time of the uuid module."""
    digest = sha1(_NAMESPACE_BYTES + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def order_updated(order: Order) -> Event[Payload]:
    """Return the event with the current row of an order, whether the order changed or not."""
    state = order.state
    payload = OrderUpdated(
        order_id=order.order_id,
        user_id=order.user_id,
        amount=order.amount,
        currency=order.currency,
        status=state.status,
        failure_reason=state.failure_reason,
        payment=Decided(state=state.facts.payment, decided_at=state.facts.payment_at),
        stock=Decided(state=state.facts.stock, decided_at=state.facts.stock_at),
        version=state.version,
        created_at=order.created_at,
        updated_at=order.updated_at,
    )
    return build(payload, order.updated_at)


def order_aborted(order: Order) -> Event[Payload]:
    """Return the event that commands the compensation of an aborted order."""
    assert order.aborted_at is not None
    payload = OrderAborted(order_id=order.order_id, status=order.state.status, reason=order.state.failure_reason)
    return build(payload, order.aborted_at)


def stock_lines(lines: Mapping[str, int]) -> tuple[StockLine, ...]:
    """Return SKU -> quantity as lines of an event, sorted by SKU."""
    return tuple(StockLine(sku=sku, qty=qty) for sku, qty in sorted(lines.items()))


def wanted(items: Sequence[Item]) -> dict[str, int]:
    """Turn the items of an order into SKU -> quantity."""
    return {item.sku: item.qty for item in items}
