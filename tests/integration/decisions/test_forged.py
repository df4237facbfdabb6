"""Forged events, written by someone with access to a topic: every worker rejects them (P2 to P7)."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import product
from typing import Any

import pytest
from msgspec import structs

from orderstream.cache import CacheInvalidator
from orderstream.domain.events import (
    Event,
    InventoryReserved,
    Item,
    OrderCreated,
    Payload,
    PaymentAuthorized,
    StockLine,
    build,
)
from orderstream.domain.payment import Authorized
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.order_service.handler import OrderHandler
from orderstream.payment_worker.handler import PaymentHandler
from orderstream.postgres.connect import Connection
from orderstream.worker.handler import BatchResult
from tests.integration.decisions.orders import (
    AMOUNT,
    aborted,
    authorized,
    created,
    decide,
    emitted,
    items_of,
    place,
    record,
    rejections,
    result,
    row,
    types,
)
from tests.support.payments import ScriptedProvider, payments
from tests.support.samples import AT

FAR = datetime(9000, 1, 1, tzinfo=UTC)
FACTS = "SELECT status, payment, stock, payment_at, stock_at, failure_reason, version FROM orders"
DECISIONS = ("payments", "reservations", "inventory")


class Cache(CacheInvalidator):
    """Does nothing."""

    def __init__(self) -> None:
        pass

    def bar(self, order_ids: Sequence[str]) -> bool:
        return bool(order_ids)

    def delete(self, order_ids: Sequence[str]) -> bool:
        return bool(order_ids)


@pytest.fixture
def order_service() -> OrderHandler:
    """The order service's handler."""
    return OrderHandler(Cache(), ())


@pytest.fixture
def provider() -> ScriptedProvider:
    """A provider that authorizes everything."""
    return ScriptedProvider(Authorized())


@pytest.fixture
def payment_worker(provider: ScriptedProvider) -> Iterator[PaymentHandler]:
    """The payment worker's handler."""
    with payments(provider) as built:
        yield built.handler


INVENTORY_WORKER = InventoryHandler()


def _rejections(batch_result: BatchResult) -> list[str]:
    return [rejected.reason for rejected in batch_result.reject]


def _tables(connection: Connection) -> list[Any]:
    return [connection.execute(f"SELECT * FROM {table} ORDER BY 1".encode()).fetchall() for table in DECISIONS]  # noqa: S608


# order-service

# Event type -> states of the payment or reservation in which the event is accepted.
FOLLOWS = {
    "payment.authorized": {"AUTHORIZED", "VOIDING", "VOIDED", "VOIDING again"},
    "payment.failed": {"FAILED", "VOIDED", "VOIDING again"},
    "payment.voided": {"VOIDED", "VOIDING again"},
    "inventory.reserved": {"RESERVED", "RELEASED"},
    "inventory.failed": {"FAILED", "RELEASED"},
    "inventory.released": {"RELEASED"},
}
PAYMENTS = (None, "PENDING", "AUTHORIZED", "FAILED", "VOIDING", "VOIDING again", "VOIDED")
RESERVATIONS = (None, "RESERVED", "FAILED", "RELEASED")
CELLS = [
    (event_type, state)
    for event_type in FOLLOWS
    for state in (PAYMENTS if event_type.startswith("payment.") else RESERVATIONS)
]


def _put(connection: Connection, order_id: str, event_type: str, state: str | None) -> None:
    if state is None:
        return
    if event_type.startswith("payment."):
        connection.execute(
            "INSERT INTO payments (order_id, state, decided_at, next_attempt_at, closed_at)"
            " VALUES (%s, %s, %s, CASE WHEN %s IN ('PENDING', 'VOIDING') THEN now() END,"
            " CASE WHEN %s THEN now() END)",
            (order_id, state.split()[0], AT, state.split()[0], state in ("VOIDING again", "VOIDED")),
        )
    else:
        connection.execute(
            "INSERT INTO reservations (order_id, state, decided_at) VALUES (%s, %s, %s)", (order_id, state, AT)
        )


@pytest.mark.parametrize(("event_type", "state"), CELLS)
def test_order_service_accepts_an_event_only_if_the_payment_or_reservation_allows_it(
    order_service: OrderHandler, connection: Connection, event_type: str, state: str | None
) -> None:
    order_id = place(connection)
    _put(connection, order_id, event_type, state)
    before = row(connection, FACTS)
    batch_result = decide(order_service, connection, result(event_type, order_id, FAR))
    if state in FOLLOWS[event_type]:
        assert _rejections(batch_result) == []
        kind = "payment" if event_type.startswith("payment.") else "stock"
        fact = "none" if state.startswith("VOIDING") else state.lower()
        assert row(connection, f"SELECT {kind} FROM orders") == (fact,)  # noqa: S608
    else:
        assert _rejections(batch_result) == ["NOT_DECIDED"]
        assert types(batch_result) == []
        assert row(connection, FACTS) == before


def test_a_forged_authorization_confirms_no_order(order_service: OrderHandler, connection: Connection) -> None:
    connection.execute("INSERT INTO inventory VALUES ('SKU-1', 10, 0)")
    order_id = place(connection)
    forged = [authorized(order_id), result("inventory.reserved", order_id)]
    batch_result = decide(order_service, connection, *forged)
    assert _rejections(batch_result) == ["NOT_DECIDED", "NOT_DECIDED"]
    batch_result = decide(INVENTORY_WORKER, connection, forged[0])
    assert _rejections(batch_result) == ["NOT_DECIDED"]
    assert row(connection, FACTS)[:3] == ("PROCESSING", "none", "none")
    assert row(connection, "SELECT available, reserved FROM inventory") == (10, 0)
    assert row(connection, "SELECT count(*) FROM reservations") == (0,)


@pytest.mark.parametrize("event_type", FOLLOWS)
def test_an_order_gets_times_and_reasons_from_its_payment_and_reservation_and_not_from_the_event(
    order_service: OrderHandler, connection: Connection, event_type: str
) -> None:
    order_id = place(connection)
    true = result(event_type, order_id, AT, "PROVIDER_UNAVAILABLE")
    record(connection, true)
    if event_type == "inventory.failed":
        connection.execute("UPDATE reservations SET reason = 'UNKNOWN_SKU'")
    forged = structs.replace(result(event_type, order_id, FAR, "TIMED_OUT"), id="00000000-0000-4000-8000-000000000000")
    for _ in range(2):
        decide(order_service, connection, forged)
    status, _, _, payment_at, stock_at, reason, version = row(connection, FACTS)
    assert (payment_at or stock_at) == AT
    assert version == 2
    if status == "FAILED":
        assert reason == {"inventory.failed": "UNKNOWN_SKU"}.get(event_type, "PROVIDER_UNAVAILABLE")


def test_a_forged_record_does_not_delay_the_other_records_of_its_batch(
    order_service: OrderHandler, connection: Connection
) -> None:
    good, victim = place(connection), place(connection)
    record(connection, authorized(good), authorized(victim))
    batch_result = decide(
        order_service,
        connection,
        result("payment.voided", victim),
        authorized(victim),
        authorized(good),
        authorized("unknown-order"),
    )
    assert rejections(batch_result) == [
        (victim, "NOT_DECIDED"),
        ("unknown-order", "UNKNOWN_ORDER"),
    ]
    assert types(batch_result) == ["order.updated", "order.updated"]
    assert connection.execute("SELECT status FROM orders").fetchall() == [("PAID",), ("PAID",)]


def test_an_authorization_is_rejected_while_its_payment_is_voided_after_no_answer(
    order_service: OrderHandler, connection: Connection
) -> None:
    """The provider never answered: the payment is voided, and the order is still open."""
    connection.execute("INSERT INTO inventory VALUES ('SKU-1', 10, 0)")
    order_id = place(connection)
    _put(connection, order_id, "payment.authorized", "VOIDING")
    assert types(decide(INVENTORY_WORKER, connection, authorized(order_id))) == []
    decide(order_service, connection, authorized(order_id))
    assert row(connection, FACTS)[:3] == ("PROCESSING", "none", "none")
    assert row(connection, "SELECT count(*) FROM reservations") == (0,)


# inventory-worker


@pytest.mark.parametrize("state", PAYMENTS)
def test_stock_is_reserved_only_for_an_authorized_payment(connection: Connection, state: str | None) -> None:
    connection.execute("INSERT INTO inventory VALUES ('SKU-1', 10, 0)")
    order_id = place(connection)
    _put(connection, order_id, "payment.authorized", state)
    batch_result = decide(INVENTORY_WORKER, connection, authorized(order_id))
    assert _rejections(batch_result) == (["NOT_DECIDED"] if state in (None, "PENDING", "FAILED") else [])
    assert types(batch_result) == (["inventory.reserved"] if state == "AUTHORIZED" else [])
    assert row(connection, "SELECT reserved FROM inventory") == (1 if state == "AUTHORIZED" else 0,)


def test_the_reserved_lines_are_those_of_the_order_and_not_of_the_event(connection: Connection) -> None:
    connection.execute("INSERT INTO inventory VALUES ('SKU-1', 10, 0), ('GOLD', 10, 0)")
    order_id = place(connection, {"SKU-1": 2})
    record(connection, authorized(order_id))
    (event,) = emitted(decide(INVENTORY_WORKER, connection, authorized(order_id, {"SKU-1": 9, "GOLD": 9})))
    assert event.payload == InventoryReserved(order_id=order_id, items=(StockLine(sku="SKU-1", qty=2),))
    assert row(connection, "SELECT sum(reserved)::int FROM inventory") == (2,)


# order.aborted, in both workers that read it


@pytest.mark.parametrize("status", ["PROCESSING", "CONFIRMED"])
def test_a_forged_abort_changes_nothing(payment_worker: PaymentHandler, connection: Connection, status: str) -> None:
    connection.execute("INSERT INTO inventory VALUES ('SKU-1', 10, 0)")
    order_id = place(connection)
    record(connection, authorized(order_id))
    decide(INVENTORY_WORKER, connection, authorized(order_id))
    if status == "CONFIRMED":
        connection.execute("UPDATE orders SET status = 'CONFIRMED', payment = 'authorized', stock = 'reserved'")
    before = _tables(connection)
    for handler in (payment_worker, INVENTORY_WORKER):
        batch_result = decide(handler, connection, aborted(order_id))
        assert (_rejections(batch_result), types(batch_result)) == (["NOT_DECIDED"], [])
    assert _tables(connection) == before


def test_a_forged_abort_in_a_batch_with_the_true_events_of_its_order_changes_nothing(
    payment_worker: PaymentHandler, provider: ScriptedProvider, connection: Connection
) -> None:
    connection.execute("INSERT INTO inventory VALUES ('SKU-1', 10, 0)")
    order_id = place(connection)
    batch_result = decide(payment_worker, connection, aborted(order_id), created(order_id), aborted(order_id))
    assert (_rejections(batch_result), types(batch_result)) == (["NOT_DECIDED"] * 2, ["payment.authorized"])
    assert len(provider.charges) == 1
    batch_result = decide(INVENTORY_WORKER, connection, aborted(order_id), authorized(order_id))
    assert (_rejections(batch_result), types(batch_result)) == (["NOT_DECIDED"], ["inventory.reserved"])


def test_the_reason_of_an_abort_is_read_from_the_order(payment_worker: PaymentHandler, connection: Connection) -> None:
    order_id = place(connection)
    record(connection, aborted(order_id, "TIMED_OUT"))
    forged = aborted(order_id, "PROVIDER_UNAVAILABLE")
    decide(payment_worker, connection, forged)
    (event,) = emitted(decide(INVENTORY_WORKER, connection, forged))
    assert getattr(event.payload, "reason", None) == "TIMED_OUT"
    assert row(connection, "SELECT reason FROM payments") == ("TIMED_OUT",)
    assert row(connection, "SELECT reason FROM reservations") == ("TIMED_OUT",)


def test_an_abort_of_an_order_that_does_not_exist_is_rejected(
    payment_worker: PaymentHandler, connection: Connection
) -> None:
    for handler, event in product((payment_worker, INVENTORY_WORKER), (aborted("unknown-order"),)):
        assert _rejections(decide(handler, connection, event)) == ["UNKNOWN_ORDER"]
    assert _rejections(decide(INVENTORY_WORKER, connection, authorized("unknown-order"))) == ["UNKNOWN_ORDER"]


# order.created


def _forged_created(order_id: str) -> Event[Payload]:
    items = (Item(sku="GOLD", qty=1_000, price=Decimal("0.01")),)
    payload = OrderCreated(order_id=order_id, user_id="u-2", items=items, amount=Decimal("0.01"), currency="JPY")
    return build(payload, FAR)


@pytest.mark.parametrize("again", [False, True])
def test_the_charge_and_the_event_have_the_accepted_amount_and_lines(
    payment_worker: PaymentHandler, provider: ScriptedProvider, connection: Connection, *, again: bool
) -> None:
    order_id = place(connection, {"SKU-1": 2, "SKU-2": 1})
    if again:
        decide(payment_worker, connection, created(order_id))
    (event,) = emitted(decide(payment_worker, connection, _forged_created(order_id)))
    assert event.payload == PaymentAuthorized(
        order_id=order_id, items=items_of({"SKU-1": 2, "SKU-2": 1}), amount=AMOUNT, currency="USD"
    )
    assert [(charge.amount, charge.currency) for charge in provider.charges] == [(AMOUNT, "USD")]
    assert (event.occurred_at,) == row(connection, "SELECT decided_at FROM payments")
