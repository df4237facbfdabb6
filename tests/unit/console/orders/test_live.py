"""What the flow monitor knows about an order: the lag of its own partition, and the breaker."""

from orderstream.console.flow.kafka_reader import KafkaSample
from orderstream.console.flow.snapshot import Snapshot
from orderstream.console.flow.source import Reading
from orderstream.console.orders.live import live_of
from orderstream.kafka.partitions import partition_of
from tests.support.samples import AT, ORDER_ID

MINE = partition_of(ORDER_ID.encode(), 4)
ENDS = {("order.created.v1", number): 100 for number in range(4)}


def snapshot(*, silent: bool = False) -> Snapshot:
    taken = {(topic, number): 93 if number == MINE else 0 for topic, number in ENDS}
    sample = KafkaSample(1, {}, ENDS, {"payment-worker": taken}, 9.0)
    return Snapshot(10.0, AT, 0.0, kafka=Reading(sample, 9.0, silent_since=9.0 if silent else None))


def test_the_lag_is_that_of_the_partition_of_the_order() -> None:
    assert live_of(snapshot(), ORDER_ID).lag == {("payment-worker", "order.created"): 7}


def test_an_old_lag_is_left_out() -> None:
    assert live_of(snapshot(silent=True), ORDER_ID).lag == {}


def test_without_metrics_the_breaker_is_unknown() -> None:
    assert live_of(snapshot(), ORDER_ID).breaker_is_open is None
