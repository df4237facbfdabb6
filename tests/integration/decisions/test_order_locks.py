"""Two concurrent changes of one order: the second sees the first, without a deadlock (P4, P6, P7)."""

from contextlib import ExitStack

import pytest

from orderstream.cache import CacheInvalidator
from orderstream.domain.events import Event, Payload
from orderstream.order_service.handler import OrderHandler
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from orderstream.worker.handler import BatchResult
from tests.integration.decisions.orders import decide, place, received, record, result, row, types
from tests.support.locks import after_it_waits


@pytest.fixture
def handler(settings: Settings) -> OrderHandler:
    """The handler of order-service, with a real cache."""
    return OrderHandler(CacheInvalidator(settings.redis_url, settings.cache_budget_seconds), ())


def _second_decision(
    handler: OrderHandler, connection: Connection, postgres_url: str, first: Event[Payload], second: Event[Payload]
) -> BatchResult:
    """Decide `second` on its own connection, while the transaction of `first` is open."""
    record(connection, first)
    with ExitStack() as stack:
        replica, observer = (stack.enter_context(connect(postgres_url, name)) for name in ("replica", "observer"))
        open_ = stack.enter_context(ExitStack())
        open_.enter_context(connection.transaction())
        handler.decide(connection, received([first]), None)
        record(replica, second)
        return after_it_waits(observer, lambda: decide(handler, replica, second), open_.close)


def test_of_two_concurrent_facts_the_second_completes_the_order(
    handler: OrderHandler, connection: Connection, postgres_url: str
) -> None:
    order_id = place(connection)
    paid, reserved = result("payment.authorized", order_id), result("inventory.reserved", order_id)
    batch_result = _second_decision(handler, connection, postgres_url, paid, reserved)
    assert types(batch_result) == ["order.updated"]
    assert row(connection, "SELECT status, payment, stock, version FROM orders") == (
        "CONFIRMED",
        "authorized",
        "reserved",
        3,
    )


def test_a_fact_that_arrives_while_the_order_fails_does_not_reopen_it(
    handler: OrderHandler, connection: Connection, postgres_url: str
) -> None:
    order_id = place(connection)
    failed, paid = result("inventory.failed", order_id), result("payment.authorized", order_id)
    batch_result = _second_decision(handler, connection, postgres_url, failed, paid)
    assert types(batch_result) == ["order.updated", "order.aborted"]
    assert row(connection, "SELECT status, failure_reason, payment, stock FROM orders") == (
        "FAILED",
        "OUT_OF_STOCK",
        "authorized",
        "failed",
    )


def test_a_payment_is_inserted_while_order_service_locks_its_order(
    handler: OrderHandler, connection: Connection, postgres_url: str
) -> None:
    """The foreign key locks the row of the order, too. Only a lock weaker than FOR UPDATE does not block it."""
    order_id = place(connection)
    reserved = result("inventory.reserved", order_id)
    record(connection, reserved)
    with connect(postgres_url, "payment-worker") as worker, connection.transaction():
        handler.decide(connection, received([reserved]), None)
        worker.execute("SET lock_timeout = '1s'")
        worker.execute("INSERT INTO payments (order_id, state) VALUES (%s, 'AUTHORIZED')", (order_id,))


def test_an_order_that_changed_is_checked_again_after_the_full_interval(
    handler: OrderHandler, connection: Connection
) -> None:
    order_id = place(connection)
    connection.execute("UPDATE orders SET next_check_at = now() - interval '1 h', updated_at = now() - interval '1 h'")
    paid = result("payment.authorized", order_id)
    record(connection, paid)
    decide(handler, connection, paid)
    (next_check, updated) = row(
        connection, "SELECT next_check_at > now() + interval '20 s', updated_at > now() - interval '1 min' FROM orders"
    )
    assert (next_check, updated) == (True, True)
