"""The limit of `make bench` writes the rows and the messages that OrderStream writes."""

from orderstream.audit.check import audit
from orderstream.kafka import envelope
from orderstream.postgres.connect import Connection
from tests.load.bench.peers.limit import sample, workers

UNITS = 10


def test_its_rows_are_confirmed_orders_that_keep_all_promises(connection: Connection, postgres_url: str) -> None:
    connection.execute("INSERT INTO inventory (sku, available) VALUES (%s, %s)", (sample.SKU, UNITS))
    workers.write_batch(connection, sample.ids(3))
    statuses = connection.execute("SELECT status, count(*) FROM orders GROUP BY status").fetchall()
    assert statuses == [("CONFIRMED", 3)]
    assert connection.execute("SELECT available, reserved FROM inventory").fetchall() == [(UNITS - 3, 3)]
    breaches = audit(postgres_url, grace_seconds=0)
    assert breaches
    assert not any(breaches.values())


def test_its_messages_are_the_events_of_one_confirmed_order() -> None:
    (order_id,) = sample.ids(1)
    key = order_id.encode()
    decoded = [envelope.decode(message.topic, key, message.value(key)) for message in sample.messages()]
    types = ["order.created", "payment.authorized", "inventory.reserved", "order.updated"]
    assert [event.type for event in decoded] == types
    assert {event.correlation_id for event in decoded} == {order_id}
