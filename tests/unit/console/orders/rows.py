"""Rows of one order, for tests of the pure functions about its story."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from orderstream.console.orders.stored import LineRow, OrderRow, OutboxEvent, PaymentRow, ReservationRow, Stored
from tests.support.samples import ORDER_ID

NOW = datetime(2026, 1, 2, 3, 5, 0, tzinfo=UTC)
CREATED = NOW - timedelta(seconds=20)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def order(status: str = "PROCESSING", **columns: Any) -> OrderRow:
    values: dict[str, Any] = {
        "order_id": ORDER_ID,
        "user_id": "u-1",
        "amount": Decimal("258.50"),
        "currency": "USD",
        "status": status,
        "failure_reason": None,
        "version": 1,
        "created_at": CREATED,
        "updated_at": CREATED,
        "payment": "none",
        "payment_at": None,
        "stock": "none",
        "stock_at": None,
        "next_check_at": NOW + timedelta(seconds=10),
        "nudges": 0,
        "nudged_at": None,
        "aborted_at": None,
        "idempotency_key": None,
        "traceparent": TRACEPARENT,
        "tracestate": None,
        "now": NOW,
    }
    return OrderRow(**(values | columns))


def payment(state: str, **columns: Any) -> PaymentRow:
    is_open = state in ("PENDING", "VOIDING")
    values: dict[str, Any] = {
        "state": state,
        "amount": Decimal("258.50"),
        "reason": None,
        "attempts": 0,
        "next_attempt_at": NOW + timedelta(seconds=3) if is_open else None,
        "pending_since": None,
        "decided_at": ago(15),
        "closed_at": None,
        "traceparent": None,
        "tracestate": None,
    }
    return PaymentRow(**(values | columns))


def reservation(state: str, **columns: Any) -> ReservationRow:
    values: dict[str, Any] = {
        "state": state,
        "lines": {"SKU-1": 2} if state == "RESERVED" else {},
        "lines_total": int(state == "RESERVED"),
        "reason": None,
        "skus": None,
        "decided_at": ago(14),
    }
    return ReservationRow(**(values | columns))


def outbox(topic: str = "order.created.v1", seconds: float = 1.0) -> OutboxEvent:
    return OutboxEvent(7, topic, "6f1d1c0e-5a55-5d0b-9d6e-0d7a3b1f4c21", "{}", TRACEPARENT, ago(seconds))


def stored(
    row: OrderRow | None = None,
    pay: PaymentRow | None = None,
    stock: ReservationRow | None = None,
    *waiting: OutboxEvent,
) -> Stored:
    return Stored(row or order(), pay, stock, [LineRow("SKU-1", 2, Decimal("129.25"))], waiting)
