"""The rows and the messages of CONFIRMED orders of one line, as OrderStream writes them."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from orderstream.api_gateway.orders.order_id import new_order_id
from orderstream.domain import events
from orderstream.domain.events import Decided, Item, OrderCreated, OrderUpdated, Payload, PaymentAuthorized
from orderstream.kafka import envelope
from orderstream.telemetry.tracing import TraceContext

SKU, USER, CURRENCY = "BENCH-1", "bench", "USD"
QTY, PRICE = 1, Decimal("129.00")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

COLUMNS = {
    "orders": "id, user_id, amount, currency, status, payment, stock, payment_at, stock_at, version, traceparent",
    "order_items": "order_id, sku, qty, price",
    "payments": "order_id, state, amount, attempts, traceparent",
    "reservations": "order_id, state, lines",
}
"""The tables in the order in which they can be filled, with the columns that have no default."""
_ID = "00000000-0000-7000-8000-000000000000"


def ids(count: int) -> list[str]:
    """Return new order ids."""
    now = time.time()
    return [new_order_id(now) for _ in range(count)]


def rows(order_ids: Sequence[str]) -> dict[str, str]:
    """Return the rows of each table, as the text of COPY."""
    now = datetime.now(UTC).isoformat()
    after_id = {
        "orders": f"{USER}\t{PRICE}\t{CURRENCY}\tCONFIRMED\tauthorized\treserved\t{now}\t{now}\t2\t{TRACEPARENT}\n",
        "order_items": f"{SKU}\t{QTY}\t{PRICE}\n",
        "payments": f"AUTHORIZED\t{PRICE}\t1\t{TRACEPARENT}\n",
        "reservations": f'RESERVED\t{{"{SKU}": {QTY}}}\n',
    }
    return {table: "".join(f"{order_id}\t{text}" for order_id in order_ids) for table, text in after_id.items()}


class Message:
    """The message of one event. All orders have the same values in it, except the order id."""

    def __init__(self, payload: Payload, at: datetime) -> None:
        event = events.build(payload, at)
        self.topic = events.topic_of(event.type)
        self.headers = envelope.event_headers(event.type, event.id, TraceContext(TRACEPARENT, None))
        self._parts = envelope.encode(event).split(_ID.encode())

    def value(self, order_id: bytes) -> bytes:
        """Return the value for this order."""
        return order_id.join(self._parts)


def messages() -> list[Message]:
    """Return the messages of one order, in their order. Both facts of the order share one `order.updated`."""
    at = datetime.now(UTC)
    items = (Item(sku=SKU, qty=QTY, price=PRICE),)
    updated = OrderUpdated(
        order_id=_ID,
        user_id=USER,
        amount=PRICE,
        currency=CURRENCY,
        status="CONFIRMED",
        failure_reason=None,
        payment=Decided(state="authorized", decided_at=at),
        stock=Decided(state="reserved", decided_at=at),
        version=2,
        created_at=at,
        updated_at=at,
    )
    payloads = (
        OrderCreated(order_id=_ID, user_id=USER, items=items, amount=PRICE, currency=CURRENCY),
        PaymentAuthorized(order_id=_ID, items=items, amount=PRICE, currency=CURRENCY),
        events.InventoryReserved(order_id=_ID, items=events.stock_lines({SKU: QTY})),
        updated,
    )
    return [Message(payload, at) for payload in payloads]
