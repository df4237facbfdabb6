"""Orders in Postgres and events as records, for tests that call a handler directly."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

from orderstream.domain.events import (
    Event,
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
from orderstream.domain.order import FailureReason
from orderstream.kafka.envelope import Received, Record
from orderstream.postgres.connect import Connection
from orderstream.worker.handler import BatchResult
from tests.support.event_walk import ANSWERS
from tests.support.samples import AT

AMOUNT = Decimal("129.00")
ONE = {"SKU-1": 1}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def items_of(lines: dict[str, int]) -> tuple[Item, ...]:
    """Return items of SKU -> quantity."""
    return tuple(Item(sku=sku, qty=qty, price=AMOUNT) for sku, qty in lines.items())


def place(connection: Connection, lines: dict[str, int] | None = None, order_id: str | None = None) -> str:
    """Insert an order as the gateway does and return its id."""
    order_id = order_id or str(uuid4())
    connection.execute(
        "INSERT INTO orders (id, user_id, amount, currency, traceparent) VALUES (%s, 'u-1', %s, 'USD', %s)",
        (order_id, AMOUNT, TRACEPARENT),
    )
    for item in items_of(lines or ONE):
        connection.execute(
            "INSERT INTO order_items (order_id, sku, qty, price) VALUES (%s, %s, %s, %s)",
            (order_id, item.sku, item.qty, item.price),
        )
    return order_id


def created(order_id: str, lines: dict[str, int] | None = None) -> Event[Payload]:
    """Return the order.created of an order."""
    payload = OrderCreated(
        order_id=order_id, user_id="u-1", items=items_of(lines or ONE), amount=AMOUNT, currency="USD"
    )
    return build(payload, AT)


def aborted(order_id: str, reason: FailureReason | None = "OUT_OF_STOCK") -> Event[Payload]:
    """Return an order.aborted. Without a reason, it is that of a cancel."""
    return build(OrderAborted(order_id=order_id, status="FAILED" if reason else "CANCELLED", reason=reason), AT)


def authorized(order_id: str, lines: dict[str, int] | None = None, at: datetime = AT) -> Event[Payload]:
    """Return a payment.authorized."""
    payload = PaymentAuthorized(order_id=order_id, items=items_of(lines or ONE), amount=AMOUNT, currency="USD")
    return build(payload, at)


def result(event_type: str, order_id: str, at: datetime = AT, reason: FailureReason | None = None) -> Event[Payload]:
    """Return a payment or inventory result of that type."""
    lines = (StockLine(sku="SKU-1", qty=1),)
    payloads: dict[str, Payload] = {
        "payment.failed": PaymentFailed(order_id=order_id, reason=reason or "PAYMENT_DECLINED"),
        "payment.voided": PaymentVoided(order_id=order_id, reason=reason),
        "inventory.reserved": InventoryReserved(order_id=order_id, items=lines),
        "inventory.failed": InventoryFailed(order_id=order_id, reason=reason or "OUT_OF_STOCK", skus=("SKU-1",)),
        "inventory.released": InventoryReleased(order_id=order_id, items=lines, reason=reason),
    }
    return authorized(order_id, at=at) if event_type == "payment.authorized" else build(payloads[event_type], at)


PAYMENT_STATES = ("PENDING", "AUTHORIZED", "FAILED", "VOIDED")
STOCK_STATES = ("RESERVED", "FAILED", "RELEASED")


def record(connection: Connection, *events: Event[Payload]) -> None:
    """Record the payments and reservations of events, as the services do that publish them. A state never goes back."""
    for event in events:
        if isinstance(event.payload, OrderAborted):
            abort(connection, event.correlation_id, reason=event.payload.reason)
        if not event.type.startswith(("payment.", "inventory.")):
            continue
        kind, _, name = event.type.partition(".")
        table, states = ("payments", PAYMENT_STATES) if kind == "payment" else ("reservations", STOCK_STATES)
        connection.execute(
            f"INSERT INTO {table} AS t (order_id, state, decided_at, reason)"  # noqa: S608 - one of two names
            f" SELECT id, %(state)s, %(at)s, %(reason)s FROM orders WHERE id = %(id)s"
            f" ON CONFLICT (order_id) DO UPDATE"
            f" SET state = excluded.state, decided_at = excluded.decided_at, reason = excluded.reason"
            f" WHERE array_position(%(states)s, t.state) < array_position(%(states)s, excluded.state)".encode(),
            {
                "id": event.correlation_id,
                "state": name.upper(),
                "at": event.occurred_at,
                "reason": getattr(event.payload, "reason", None),
                "states": list(states),
            },
        )


def abort(connection: Connection, *order_ids: str, reason: str | None = "OUT_OF_STOCK") -> None:
    """Abort orders as order-service does, or, without a reason, as a cancel does."""
    connection.execute(
        "UPDATE orders SET status = %s, failure_reason = %s, aborted_at = now()"
        " WHERE id = ANY(%s) AND aborted_at IS NULL",
        ("FAILED" if reason else "CANCELLED", reason, list(order_ids)),
    )


def received(events: Sequence[Event[Payload]]) -> list[Received]:
    """Return the events as records from Kafka."""
    headers: list[tuple[str, bytes | None]] = [("traceparent", TRACEPARENT.encode())]
    return [
        Received(Record(topic_of(event.type), 0, number, event.correlation_id.encode(), b"", headers), event)
        for number, event in enumerate(events)
    ]


def rejections(batch_result: BatchResult) -> list[tuple[str, str]]:
    """Return the order id and the reason of each record that a batch result rejects."""
    return [(rejected.received.order_id, rejected.reason) for rejected in batch_result.reject]


def decide(handler: Any, connection: Connection, *events: Event[Payload]) -> BatchResult:
    """Decide a batch with a handler, as the worker does. Every answer must be in the event graph."""
    batch = received(events)
    prepared = handler.prepare(connection, batch)
    with connection.transaction():
        batch_result: BatchResult = handler.decide(connection, batch, prepared)
    batch_result.after_commit()
    for outgoing in batch_result.emit:
        assert outgoing.cause in batch
        assert outgoing.event.correlation_id == outgoing.cause.order_id
        assert outgoing.event.type in ANSWERS[handler.group, outgoing.cause.event.type]
    return batch_result


def emitted(batch_result: BatchResult) -> list[Event[Payload]]:
    """Return the events of a batch result, in order."""
    return [outgoing.event for outgoing in batch_result.emit]


def types(batch_result: BatchResult) -> list[str]:
    """Return the types of the events of a batch result, in order."""
    return [event.type for event in emitted(batch_result)]


def row(connection: Connection, query: str, *parameters: object) -> tuple[Any, ...]:
    """Return the one row of a query."""
    (found,) = connection.execute(query.encode(), parameters).fetchall()
    return tuple(found)
