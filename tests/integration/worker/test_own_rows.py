"""An error about a damaged row is a failure of the record: one dead letter an hour until the row is repaired (P3)."""

import json
from typing import Any

import pytest

from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.kafka.topics import dead_letter_topic
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.integration.decisions.orders import aborted, place, row
from tests.integration.worker.running import running
from tests.support.contracts import assert_dead_letter_headers
from tests.support.topics import Tap, begin_here, publish_events

LETTERS, RELEASED = dead_letter_topic("inventory-worker"), "inventory.released.v1"

SPOILED = {
    "less is reserved than the order holds": (["UPDATE inventory SET reserved = 0"], "CheckViolation"),
    "no room for what is given back": (
        [
            "ALTER TABLE inventory DROP CONSTRAINT inventory_units_bounded",
            "UPDATE inventory SET available = 9223372036854775807",
        ],
        "NumericValueOutOfRange",
    ),
}
"""Ways to damage a row, by hand or by an older version, and the resulting error of Postgres."""


def _cancelled(connection: Connection, sku: str) -> str:
    """Insert a cancelled order that holds one unit."""
    order_id = place(connection, {sku: 1})
    connection.execute("INSERT INTO inventory VALUES (%s, 5, 1) ON CONFLICT DO NOTHING", (sku,))
    connection.execute("UPDATE orders SET status = 'CANCELLED', aborted_at = now() WHERE id = %s", (order_id,))
    connection.execute(
        "INSERT INTO reservations (order_id, state, lines) VALUES (%s, 'RESERVED', %s::jsonb)",
        (order_id, json.dumps({sku: 1})),
    )
    return order_id


@pytest.mark.parametrize("how", SPOILED)
def test_an_abort_that_fails_each_time_is_one_dead_letter_and_is_released_after_the_row_is_repaired(
    settings: Settings, connection: Connection, how: str
) -> None:
    statements, error = SPOILED[how]
    stuck = _cancelled(connection, "STUCK")
    for statement in statements:
        connection.execute(statement.encode())
    others = [_cancelled(connection, "SKU-1") for _ in range(3)]
    connection.execute("UPDATE inventory SET reserved = 3 WHERE sku = 'SKU-1'")
    begin_here(settings.kafka_brokers, "inventory-worker")
    with Tap(settings.kafka_brokers, [LETTERS, RELEASED]) as tap, running(InventoryHandler(), settings):
        for other in others:
            # The watchdog repeats the abort together with others.
            publish_events(settings.kafka_brokers, [aborted(stuck, None), aborted(other, None), aborted(stuck, None)])
            tap.until(lambda seen, other=other: _of(seen, other), 20, "the other order is released")  # type: ignore[misc]
        connection.execute("UPDATE inventory SET available = 4, reserved = 1 WHERE sku = 'STUCK'")
        publish_events(settings.kafka_brokers, [aborted(stuck, None)])
        seen = tap.until(lambda seen: RELEASED in _of(seen, stuck), 20, "the stuck order is released")
    assert _of(seen, stuck).count(LETTERS) == 1
    (letter,) = [record for record in seen if record.topic == LETTERS]
    notes = assert_dead_letter_headers(letter.headers)
    assert notes["dlq-reason"] == "FAILED"
    assert notes["dlq-error"].startswith(error)
    assert row(connection, "SELECT available, reserved FROM inventory WHERE sku = 'STUCK'") == (5, 0)


def _of(letters: Any, order_id: str) -> list[str]:
    """Return the topics of the records of an order."""
    return [letter.topic for letter in letters if letter.key == order_id.encode()]
