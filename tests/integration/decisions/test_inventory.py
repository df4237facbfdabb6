"""Every cell of the table of inventory-worker, on PostgreSQL (P3, P7)."""

from concurrent.futures import ThreadPoolExecutor
from random import Random

import psycopg
import pytest
from psycopg.types.json import Jsonb

from orderstream.domain.events import (
    Event,
    InventoryFailed,
    InventoryReleased,
    InventoryReserved,
    Payload,
    StockLine,
)
from orderstream.domain.limits import UNITS_MAX
from orderstream.domain.order import FailureReason
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.postgres.connect import Connection, connect
from orderstream.worker.handler import BatchResult, RepeatBatchError
from tests.integration.decisions import orders
from tests.integration.decisions.orders import aborted, authorized, emitted, place, record, row, types

HANDLER = InventoryHandler()


def decide(handler: InventoryHandler, connection: Connection, *events: Event[Payload]) -> BatchResult:
    """Record the payments and reservations of events, then decide the batch with the handler."""
    record(connection, *events)
    return orders.decide(handler, connection, *events)


@pytest.fixture(autouse=True)
def _stock(connection: Connection) -> None:
    connection.execute("INSERT INTO inventory VALUES ('SKU-1', 10, 0), ('SKU-2', 1, 0), ('EMPTY', 0, 0)")


def _stock_of(connection: Connection, sku: str = "SKU-1") -> tuple[int, int]:
    available, reserved = row(connection, "SELECT available, reserved FROM inventory WHERE sku = %s", sku)
    return available, reserved


def _state(connection: Connection, order_id: str) -> tuple[object, ...]:
    return row(connection, "SELECT state, lines, reason FROM reservations WHERE order_id = %s", order_id)


def _reserved(connection: Connection, lines: dict[str, int]) -> tuple[str, BatchResult]:
    order_id = place(connection, lines)
    return order_id, decide(HANDLER, connection, authorized(order_id, lines))


def test_an_authorization_without_a_reservation_reserves_all_lines(connection: Connection) -> None:
    order_id, batch_result = _reserved(connection, {"SKU-1": 3, "SKU-2": 1})
    (event,) = emitted(batch_result)
    assert event.payload == InventoryReserved(
        order_id=order_id, items=(StockLine(sku="SKU-1", qty=3), StockLine(sku="SKU-2", qty=1))
    )
    assert _stock_of(connection) == (7, 3)
    assert _stock_of(connection, "SKU-2") == (0, 1)
    assert _state(connection, order_id) == ("RESERVED", {"SKU-1": 3, "SKU-2": 1}, None)
    assert row(connection, "SELECT decided_at FROM reservations") == (event.occurred_at,)


@pytest.mark.parametrize(
    ("lines", "reason", "skus"),
    [
        ({"SKU-1": 1, "SKU-2": 2}, "OUT_OF_STOCK", ("SKU-2",)),
        ({"EMPTY": 1}, "OUT_OF_STOCK", ("EMPTY",)),
        ({"SKU-1": 1, "NEVER-SEEN": 1}, "UNKNOWN_SKU", ("NEVER-SEEN",)),
    ],
)
def test_an_authorization_without_a_reservation_reserves_nothing_if_a_line_lacks_stock(
    connection: Connection, lines: dict[str, int], reason: str, skus: tuple[str, ...]
) -> None:
    order_id, batch_result = _reserved(connection, lines)
    (event,) = emitted(batch_result)
    assert isinstance(event.payload, InventoryFailed)
    assert (event.payload.reason, event.payload.skus) == (reason, skus)
    assert _stock_of(connection) == (10, 0)
    assert _state(connection, order_id) == ("FAILED", {}, reason)


def test_a_second_authorization_repeats_inventory_reserved(connection: Connection) -> None:
    order_id, first = _reserved(connection, {"SKU-1": 3})
    again = decide(HANDLER, connection, authorized(order_id, {"SKU-1": 3}), authorized(order_id, {"SKU-1": 3}))
    assert emitted(again) == emitted(first) * 2
    assert _stock_of(connection) == (7, 3)


def test_a_second_authorization_repeats_inventory_failed_although_there_is_new_stock(connection: Connection) -> None:
    order_id, first = _reserved(connection, {"EMPTY": 1})
    connection.execute("UPDATE inventory SET available = 5 WHERE sku = 'EMPTY'")
    assert emitted(decide(HANDLER, connection, authorized(order_id, {"EMPTY": 1}))) == emitted(first)
    assert _stock_of(connection, "EMPTY") == (5, 0)


def test_an_authorization_after_an_abort_repeats_inventory_released(connection: Connection) -> None:
    order_id = place(connection)
    first = decide(HANDLER, connection, aborted(order_id))
    assert emitted(decide(HANDLER, connection, authorized(order_id))) == emitted(first)
    assert _stock_of(connection) == (10, 0)


def test_an_abort_without_a_reservation_inserts_a_tombstone(connection: Connection) -> None:
    order_id = place(connection)
    (event,) = emitted(decide(HANDLER, connection, aborted(order_id, "TIMED_OUT")))
    assert event.payload == InventoryReleased(order_id=order_id, items=(), reason="TIMED_OUT")
    assert _state(connection, order_id) == ("RELEASED", {}, "TIMED_OUT")


@pytest.mark.parametrize("reason", ["TIMED_OUT", None])
def test_an_abort_gives_back_the_reserved_units(connection: Connection, reason: FailureReason | None) -> None:
    order_id, _ = _reserved(connection, {"SKU-1": 3, "SKU-2": 1})
    (event,) = emitted(decide(HANDLER, connection, aborted(order_id, reason)))
    assert event.payload == InventoryReleased(
        order_id=order_id, items=(StockLine(sku="SKU-1", qty=3), StockLine(sku="SKU-2", qty=1)), reason=reason
    )
    assert _stock_of(connection) == (10, 0)
    assert _stock_of(connection, "SKU-2") == (1, 0)
    state, _, stored = _state(connection, order_id)
    assert (state, stored) == ("RELEASED", reason)


def test_an_abort_turns_a_failed_reservation_into_a_released_one(connection: Connection) -> None:
    order_id, _ = _reserved(connection, {"EMPTY": 1})
    (event,) = emitted(decide(HANDLER, connection, aborted(order_id)))
    assert event.payload == InventoryReleased(order_id=order_id, items=(), reason="OUT_OF_STOCK")
    assert _stock_of(connection, "EMPTY") == (0, 0)


def test_a_second_abort_repeats_inventory_released_and_gives_back_no_units(connection: Connection) -> None:
    order_id, _ = _reserved(connection, {"SKU-1": 3})
    first = decide(HANDLER, connection, aborted(order_id))
    again = decide(HANDLER, connection, aborted(order_id), aborted(order_id))
    assert emitted(again) == emitted(first) * 2
    assert _stock_of(connection) == (10, 0)


@pytest.mark.parametrize("abort_first", [True, False])
def test_an_abort_in_the_same_batch_as_an_authorization_prevents_the_reservation(
    connection: Connection, abort_first: bool
) -> None:
    order_id = place(connection)
    events = [authorized(order_id), aborted(order_id)]
    batch_result = decide(HANDLER, connection, *(reversed(events) if abort_first else events))
    assert types(batch_result) == ["inventory.released", "inventory.released"]
    assert _stock_of(connection) == (10, 0)


def test_many_orders_of_one_sku_in_a_batch_do_not_oversell_it(connection: Connection) -> None:
    orders = [place(connection, {"SKU-1": 3}) for _ in range(5)]
    batch_result = decide(HANDLER, connection, *(authorized(order_id, {"SKU-1": 3}) for order_id in orders))
    assert types(batch_result) == ["inventory.reserved"] * 3 + ["inventory.failed"] * 2
    assert _stock_of(connection) == (1, 9)


def test_units_that_a_batch_gives_back_can_be_reserved_in_the_same_batch(connection: Connection) -> None:
    held, _ = _reserved(connection, {"SKU-2": 1})
    wants = place(connection, {"SKU-2": 1})
    batch_result = decide(HANDLER, connection, aborted(held), authorized(wants, {"SKU-2": 1}))
    assert types(batch_result) == ["inventory.released", "inventory.reserved"]
    assert _stock_of(connection, "SKU-2") == (0, 1)


def test_the_lines_of_the_reservation_are_given_back_and_not_those_of_the_order(connection: Connection) -> None:
    """The row of the reservation says what was taken. The lines of the order are not read again."""
    order_id = place(connection, {"SKU-1": 9})
    connection.execute("UPDATE inventory SET available = 8, reserved = 2 WHERE sku = 'SKU-1'")
    connection.execute(
        "INSERT INTO reservations (order_id, state, lines) VALUES (%s, 'RESERVED', %s)", (order_id, Jsonb({"SKU-1": 2}))
    )
    decide(HANDLER, connection, aborted(order_id))
    assert _stock_of(connection) == (10, 0)


@pytest.mark.parametrize("available", [2**31 - 1, UNITS_MAX])
def test_the_largest_number_of_units_is_reserved_and_given_back(connection: Connection, available: int) -> None:
    connection.execute("UPDATE inventory SET available = %s WHERE sku = 'SKU-1'", (available,))
    orders = [place(connection, {"SKU-1": 2_000_000_000}) for _ in range(3)]
    events = [authorized(order_id, {"SKU-1": 2_000_000_000}) for order_id in orders]
    for number in (1, 2, 3):  # with two or three orders, one batch moves more units than fit into an INT
        decide(HANDLER, connection, *events[:number])
    assert sum(_stock_of(connection)) == available
    decide(HANDLER, connection, *(aborted(order_id) for order_id in orders))
    assert _stock_of(connection) == (available, 0)


def _decide_until_done(url: str, order_ids: tuple[str, ...], seed: int) -> None:
    """Decide batches of authorizations and aborts as a replica does, and repeat a batch after RepeatBatchError."""
    random = Random(seed)
    with connect(url, "replica") as replica:
        shuffled = random.sample(order_ids, len(order_ids))
        for start in range(0, len(shuffled), 10):
            batch = shuffled[start : start + 10]
            events = [authorized(order_id, {"SKU-1": 1, "HOT": 2}) for order_id in batch]
            events += [aborted(order_id) for order_id in batch if order_id[0] in "01234567"]
            for _ in range(50):
                try:
                    decide(HANDLER, replica, *random.sample(events, len(events)))
                except (RepeatBatchError, psycopg.errors.DeadlockDetected):
                    continue
                break
            else:
                raise AssertionError("the batch is repeated without a limit")


def test_concurrent_replicas_of_inventory_worker_conserve_stock(connection: Connection, postgres_url: str) -> None:
    connection.execute("INSERT INTO inventory VALUES ('HOT', 30, 0)")
    connection.execute("UPDATE inventory SET available = 1000 WHERE sku = 'SKU-1'")
    order_ids = tuple(place(connection, {"SKU-1": 1, "HOT": 2}) for _ in range(60))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: _decide_until_done(postgres_url, order_ids, seed), range(4)))
    states: dict[str, str] = dict(connection.execute("SELECT order_id, state FROM reservations").fetchall())
    assert set(states) == set(order_ids)
    held = [order_id for order_id, state in states.items() if state == "RESERVED"]
    assert not [order_id for order_id in held if order_id[0] in "01234567"]
    assert _stock_of(connection, "HOT") == (30 - 2 * len(held), 2 * len(held))
    assert _stock_of(connection) == (1000 - len(held), len(held))
