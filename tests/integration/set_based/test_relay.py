"""The relay publishes, puts back, refuses and removes rows with a constant number of statements."""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from confluent_kafka import KafkaError

from orderstream.api_gateway.orders.order_id import new_order_id
from orderstream.dead_letters import refused_records
from orderstream.domain.events import topic_of
from orderstream.kafka.errors import PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.outbox_relay import relay
from orderstream.outbox_relay.position import Range
from orderstream.outbox_relay.relay import Relay
from orderstream.outbox_relay.retention import Walk
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.telemetry.setup import start
from tests.integration.decisions.orders import created, place
from tests.integration.set_based.counting import Case, Counting, Work, assert_set_based

DAYS = 40
SETTLE = (
    "UPDATE orders SET status = 'CONFIRMED', payment = 'authorized', stock = 'reserved',"
    " created_at = %(at)s, updated_at = %(at)s WHERE id = %(id)s"
)
RESERVE = (
    "INSERT INTO reservations (order_id, state, lines)"
    " VALUES (%(id)s, 'RESERVED', jsonb_build_object(%(sku)s::text, 1))"
)
ALL = Range(0, 2**62)

Publish = Callable[[Sequence[Publication]], None]


def _refuse(records: Sequence[Publication]) -> None:
    """Refuse every record."""
    reasons = dict.fromkeys(range(len(records)), "MSG_SIZE_TOO_LARGE")
    raise PublishError(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), len(records), reasons, ())


def _acknowledge_one(records: Sequence[Publication]) -> None:
    """Acknowledge the first record only. A retry may help the others."""
    raise PublishError(KafkaError(KafkaError._TIMED_OUT), len(records) - 1, {}, range(1, len(records)))


def _relay(counting: Counting, script: Publish | None) -> Relay:
    """Return a relay. With a script, it reaches no Kafka."""

    class Scripted(Publisher):
        def publish(self, records: Sequence[Publication]) -> None:
            (script or super().publish)(records)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "Publisher", Scripted)
        return Relay(counting.settings, start("outbox-relay", counting.settings), threading.Event())


def _rows(publish: Publish | None, *, extra: int = 0) -> Case:
    """Publish rows. The work returns how many rows of this batch are then gone from the outbox, or are still in it."""

    def case(counting: Counting, number: int) -> Work:
        counting.tables.execute("DELETE FROM outbox")
        subject = _relay(counting, publish)
        append(counting.tables, [OutboxRow(created(str(uuid4()))) for _ in range(number + extra)])

        def work() -> int:
            try:
                published, _ = subject._publish_batch(counting.work, ALL)
            except PublishError:
                return counting.tables.execute("TABLE outbox").rowcount
            return len(published)

        return work

    return case


def _kept(counting: Counting, number: int) -> Work:
    records = [(Publication(topic_of("order.updated"), str(uuid4()), b"{}", []), "why") for _ in range(number)]

    def work() -> int:
        with counting.work.transaction():
            refused_records.keep(counting.work, "order-service", records)
        return refused_records.measure(counting.work, 1)

    counting.tables.execute("DELETE FROM refused_records")
    return work


def _redriven(counting: Counting, number: int) -> Work:
    _kept(counting, number)()
    return lambda: refused_records.redrive(counting.settings)[0]


def _forgotten(counting: Counting, number: int) -> Work:
    _kept(counting, number)()
    counting.tables.execute("UPDATE refused_records SET refused_at = now() - interval '1 day'")
    return lambda: number - refused_records.measure(counting.work, 1)


def _removed(counting: Counting, number: int) -> Work:
    """Settled orders with a SKU each, older than the retention."""
    at = datetime.now(UTC) - timedelta(days=DAYS + 1)
    for sku in (str(uuid4()) for _ in range(number)):
        order_id = place(counting.tables, {sku: 1}, new_order_id(at.timestamp()))
        values = {"id": order_id, "at": at, "sku": sku}
        for statement in (
            SETTLE,
            "INSERT INTO payments (order_id, state, amount) VALUES (%(id)s, 'AUTHORIZED', 129)",
            RESERVE,
            "INSERT INTO inventory VALUES (%(sku)s, 0, 1)",
        ):
            counting.tables.execute(statement.encode(), values)
    return lambda: Walk(DAYS).step(counting.work).sold


ROWS = {
    "published rows": _rows(None),
    "refused rows": _rows(_refuse),
    "rows that are put back": _rows(_acknowledge_one, extra=1),
    "kept records": _kept,
    "redriven records": _redriven,
    "forgotten records": _forgotten,
    "old orders": _removed,
}


@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS)
def test_outbox_relay(counting: Counting, case: Case) -> None:
    assert_set_based(counting, case)
