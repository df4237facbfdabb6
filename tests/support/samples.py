"""One payload of every event type: of the order of the README, and of an order that failed."""

from datetime import UTC, datetime
from decimal import Decimal

from orderstream.domain.events import (
    Decided,
    InventoryFailed,
    InventoryReleased,
    InventoryReserved,
    Item,
    OrderAborted,
    OrderCreated,
    OrderUpdated,
    Payload,
    PaymentAuthorized,
    PaymentFailed,
    PaymentVoided,
    StockLine,
)

ORDER_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
ITEMS = (
    Item(sku="SKU-1", qty=2, price=Decimal("129.00")),
    Item(sku="SKU-2", qty=1, price=Decimal("0.50")),
)
LINES = (StockLine(sku="SKU-1", qty=2), StockLine(sku="SKU-2", qty=1))


def order_updated(version: int = 3, order_id: str = ORDER_ID) -> OrderUpdated:
    """Return a confirmed order's row at `version`."""
    return OrderUpdated(
        order_id=order_id,
        user_id="u-1",
        amount=Decimal("258.50"),
        currency="USD",
        status="CONFIRMED",
        failure_reason=None,
        payment=Decided(state="authorized", decided_at=AT),
        stock=Decided(state="reserved", decided_at=AT),
        version=version,
        created_at=AT,
        updated_at=AT,
    )


SAMPLES: dict[str, Payload] = {
    "order.created": OrderCreated(
        order_id=ORDER_ID, user_id="u-1", items=ITEMS, amount=Decimal("258.50"), currency="USD"
    ),
    "order.aborted": OrderAborted(order_id=ORDER_ID, status="FAILED", reason="OUT_OF_STOCK"),
    "order.updated": order_updated(),
    "payment.authorized": PaymentAuthorized(order_id=ORDER_ID, items=ITEMS, amount=Decimal("258.50"), currency="USD"),
    "payment.failed": PaymentFailed(order_id=ORDER_ID, reason="PAYMENT_DECLINED"),
    "payment.voided": PaymentVoided(order_id=ORDER_ID),
    "inventory.reserved": InventoryReserved(order_id=ORDER_ID, items=LINES),
    "inventory.failed": InventoryFailed(order_id=ORDER_ID, reason="OUT_OF_STOCK", skus=("SKU-2",)),
    "inventory.released": InventoryReleased(order_id=ORDER_ID, items=LINES),
}
