"""Two that change one order at once: the second decides on what the first has left, without a deadlock (P4, P6, P7)."""

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
    """The order service's handler, on a real cache."""
    return OrderHandler(CacheInvalidator(settings.redis_url, settings.cache_budget_seconds), ())


def _second_decision(
    handler: OrderHandler, connection: Connection, postgres_url: str, first: Event[Payload], second: Event[Payload]
) -> BatchResult:
    """Decide `second` on a connection of its own, begun while the transaction that decided `first` is still open."""
    record(connection, first)
    with ExitStack() as stack:
        replica, observer = (stack.enter_context(connect(postgres_url, name)) for name in ("replica", "observer"))
        open_ = stack.enter_context(ExitStack())
        open_.enter_context(connection.transaction())
        handler.decide(connection, received([first]), None)
        record(replica, second)
        return after_it_waits(observer, lambda: decide(handler, replica, second), open_.close)


def test_the_second_of_two_facts_at_once_completes_the_order(
    handler: OrderHandler, connection: Connection, postgres_url: str
) -> None:
    order_id = place(connection)
    paid, reserved = result("payment.authorized", order_id), result("inventory.reserved", order_id)
    decision = _second_decision(handler, connection, postgres_url, paid, reserved)
    assert types(decision) == ["order.updated"]
    assert row(connection, "SELECT status, payment, stock, version FROM orders") == (
        "CONFIRMED",
        "authorized",
        "reserved",
        3,
    )


def test_a_fact_that_comes_while_the_order_fails_does_not_reopen_it(
    handler: OrderHandler, connection: Connection, postgres_url: str
) -> None:
    order_id = place(connection)
    failed, paid = result("inventory.failed", order_id), result("payment.authorized", order_id)
    decision = _second_decision(handler, connection, postgres_url, failed, paid)
    assert types(decision) == ["order.updated", "order.aborted"]
    assert row(connection, "SELECT status, failure_reason, payment, stock FROM orders") == (
        "FAILED",
        "OUT_OF_STOCK",
        "authorized",
        "failed",
    )


def test_an_order_that_is_being_decided_lets_its_payment_be_recorded(
    handler: OrderHandler, connection: Connection, postgres_url: str
) -> None:
    """A foreign key locks its order's row as well: only a weaker lock than FOR UPDATE lets it pass."""
    order_id = place(connection)
    reserved = result("inventory.reserved", order_id)
    record(connection, reserved)
    with connect(postgres_url, "payment-worker") as worker, connection.transaction():
        handler.decide(connection, received([reserved]), None)
        worker.execute("SET lock_timeout = '1s'")
        worker.execute("INSERT INTO payments (order_id, state) VALUES (%s, 'AUTHORIZED')", (order_id,))


def test_an_order_that_has_changed_is_looked_at_again_after_its_full_time(
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
