"""Reads from the flow monitor what an order may wait for: the breaker of the provider, and the lag of its partition."""

from orderstream.console.flow.snapshot import Snapshot
from orderstream.console.orders.waiting import Live
from orderstream.domain import saga
from orderstream.domain.events import topic_of
from orderstream.kafka.partitions import partition_of


def live_of(snapshot: Snapshot, order_id: str) -> Live:
    """Return what the monitor knows now. It leaves out the lag while Kafka does not answer."""
    provider, sample = snapshot.provider, snapshot.kafka.value
    lag: dict[tuple[str, str], int] = {}
    if sample is not None and snapshot.kafka.silent_from(snapshot.now) is None:
        for group in sample.next:
            lags = sample.lag(group)
            for event in saga.consumed_by(group):
                topic = topic_of(event)
                partitions = sum(name == topic for name, _ in sample.ends)
                if partitions and (place := (topic, partition_of(order_id.encode(), partitions))) in lags:
                    lag[group, event] = lags[place]
    return Live(None if provider is None else provider.breaker > 0, lag)
