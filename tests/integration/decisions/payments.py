"""Payments in Postgres and the events of payment-worker, for tests that call its handler directly."""

import json
from typing import Any

from orderstream.domain.events import Event, Payload
from orderstream.domain.order import FailureReason
from orderstream.domain.payment import PaymentState
from orderstream.postgres.connect import Connection
from orderstream.worker.handler import BatchResult
from tests.integration.decisions import orders
from tests.integration.decisions.orders import (
    AMOUNT,
    TRACEPARENT,
    place,
    record,
    row,
)
from tests.support.contracts import assert_event
from tests.support.payments import (
    Payments,
)


def decide(worker: Payments, connection: Connection, *events: Event[Payload]) -> BatchResult:
    """Record the aborts of events, then decide the batch with the worker's handler."""
    record(connection, *events)
    return orders.decide(worker.handler, connection, *events)


def make_due(connection: Connection) -> None:
    connection.execute(
        "UPDATE payments SET next_attempt_at = now() - interval '1 ms' WHERE next_attempt_at IS NOT NULL"
    )


def payment_of(connection: Connection, order_id: str) -> tuple[PaymentState, FailureReason | None, int]:
    state, reason, attempts = row(
        connection, "SELECT state, reason, attempts FROM payments WHERE order_id = %s", order_id
    )
    return state, reason, attempts


def outbox_of(connection: Connection) -> list[dict[str, Any]]:
    """Return the events in the outbox. Each must keep its contract and continue the trace of the order."""
    rows = connection.execute("SELECT topic, order_id, event_id, value, traceparent FROM outbox ORDER BY id").fetchall()
    for name, order_id, event_id, value, traceparent in rows:
        body = assert_event(name, order_id.encode(), value.encode())
        assert (body["id"], traceparent) == (str(event_id), TRACEPARENT)
    return [json.loads(value) for _, _, _, value, _ in rows]


def payment_in_state(
    connection: Connection, state: PaymentState, reason: FailureReason | None = None, attempts: int = 1
) -> str:
    """Place an order whose payment is in the given state."""
    order_id = place(connection)
    connection.execute(
        "INSERT INTO payments (order_id, state, amount, reason, attempts, traceparent, next_attempt_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, CASE WHEN %s THEN now() - interval '1 ms' END)",
        (order_id, state, AMOUNT, reason, attempts, TRACEPARENT, state in ("PENDING", "VOIDING")),
    )
    return order_id
