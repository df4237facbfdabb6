"""Two concurrent transactions on stock: the second sees the result of the first, and no unit is moved twice (P3)."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest
from psycopg.types.json import Jsonb

from orderstream.domain.events import Event, Payload
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.postgres.connect import Connection, connect
from orderstream.worker.handler import BatchResult, RepeatBatchError
from tests.integration.decisions.orders import (
    aborted,
    authorized,
    decide,
    emitted,
    place,
    received,
    record,
    row,
    types,
)
from tests.support.locks import after_it_waits

HANDLER = InventoryHandler()
Second = Callable[[Event[Payload], Event[Payload]], BatchResult]


@pytest.fixture(autouse=True)
def _stock(connection: Connection) -> None:
    connection.execute("INSERT INTO inventory VALUES ('SKU-1', 1, 0), ('SKU-2', 7, 3)")


@pytest.fixture
def second(connection: Connection, postgres_url: str) -> Second:
    """Decides the second event on its own connection, while the transaction of the first event is open."""

    def decided(first: Event[Payload], then: Event[Payload]) -> BatchResult:
        with ExitStack() as stack:
            replica, observer = (stack.enter_context(connect(postgres_url, name)) for name in ("replica", "observer"))
            open_ = stack.enter_context(ExitStack())
            open_.enter_context(connection.transaction())
            HANDLER.decide(connection, received([first]), None)
            return after_it_waits(observer, lambda: decide(HANDLER, replica, then), open_.close)

    return decided


def _stock_of(connection: Connection, sku: str) -> tuple[int, int]:
    available, reserved = row(connection, "SELECT available, reserved FROM inventory WHERE sku = %s", sku)
    return available, reserved


def test_of_two_concurrent_orders_for_the_last_unit_the_second_is_refused(
    connection: Connection, second: Second
) -> None:
    events = [authorized(place(connection)) for _ in range(2)]
    record(connection, *events)
    assert types(second(*events)) == ["inventory.failed"]
    assert _stock_of(connection, "SKU-1") == (0, 1)


def test_of_two_concurrent_aborts_the_second_gives_nothing_back(connection: Connection, second: Second) -> None:
    order_id = place(connection, {"SKU-2": 3})
    connection.execute(
        "INSERT INTO reservations (order_id, state, lines) VALUES (%s, 'RESERVED', %s)", (order_id, Jsonb({"SKU-2": 3}))
    )
    abort = aborted(order_id)
    record(connection, abort)
    assert types(second(abort, abort)) == ["inventory.released"]
    assert _stock_of(connection, "SKU-2") == (10, 0)


def test_if_two_batches_reserve_the_same_order_at_once_the_second_batch_is_repeated(
    connection: Connection, second: Second
) -> None:
    order_id = place(connection)
    event = authorized(order_id)
    record(connection, event)
    with pytest.raises(RepeatBatchError):
        second(event, event)
    assert types(decide(HANDLER, connection, event)) == ["inventory.reserved"]
    assert _stock_of(connection, "SKU-1") == (0, 1)


def test_inventory_released_has_the_time_of_the_release_and_not_of_the_reservation(connection: Connection) -> None:
    order_id = place(connection)
    event = authorized(order_id)
    record(connection, event)
    (reserved,) = emitted(decide(HANDLER, connection, event))
    connection.execute("UPDATE reservations SET decided_at = decided_at - interval '1 h'")
    record(connection, aborted(order_id))
    (released,) = emitted(decide(HANDLER, connection, aborted(order_id)))
    assert released.occurred_at >= reserved.occurred_at
    assert row(connection, "SELECT decided_at FROM reservations") == (released.occurred_at,)
