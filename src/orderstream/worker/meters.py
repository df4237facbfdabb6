"""The metrics of one worker, bound to its labels once, so that a batch costs only a few additions."""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping

from prometheus_client import Counter

from orderstream.telemetry import metrics


class WorkerMeters:
    """The counters of a worker. An iterable of topics has one element for each record."""

    def __init__(self, service: str, topics: Iterable[str]) -> None:
        self._service = service
        self._batch_records = metrics.BATCH_RECORDS.labels(service)
        self._batch_seconds = metrics.BATCH_SECONDS.labels(service)
        self._lagging: set[tuple[str, int]] = set()
        self._bound: dict[tuple[Counter, str], Counter] = {}
        for topic in topics:
            for metric in (metrics.CONSUMED, metrics.DECIDED, metrics.DEAD_LETTERED, metrics.RETRIED):
                self._bind(metric, topic)

    def consumed(self, topics: Iterable[str]) -> None:
        """Count records received from Kafka."""
        self._count(metrics.CONSUMED, topics)

    def decided(self, topics: Iterable[str]) -> None:
        """Count records whose decision is committed and whose events are published."""
        self._count(metrics.DECIDED, topics)

    def produced(self, topics: Iterable[str]) -> None:
        """Count events that Kafka acknowledged."""
        self._count(metrics.PRODUCED, topics)

    def dead_lettered(self, topics: Iterable[str]) -> None:
        """Count records that became dead letters."""
        self._count(metrics.DEAD_LETTERED, topics)

    def retried(self, topics: Iterable[str]) -> None:
        """Count records whose batch is retried."""
        self._count(metrics.RETRIED, topics)

    def batch(self, records: int, seconds: float) -> None:
        """Count a finished batch."""
        self._batch_records.observe(records)
        self._batch_seconds.observe(seconds)

    def lag(self, waiting: Mapping[tuple[str, int], int]) -> None:
        """Set the lag of each (topic, partition). Removes the gauges of all other partitions."""
        for topic, partition in self._lagging - waiting.keys():
            metrics.LAG.remove(self._service, topic, str(partition))
        self._lagging = set(waiting)
        for (topic, partition), records in waiting.items():
            metrics.LAG.labels(self._service, topic, str(partition)).set(max(0, records))

    def paused(self, partitions: Mapping[str, int]) -> None:
        """Set the number of paused partitions of each topic."""
        for topic, number in partitions.items():
            metrics.PAUSED_PARTITIONS.labels(self._service, topic).set(number)

    def _count(self, metric: Counter, topics: Iterable[str]) -> None:
        for topic, number in Tally(topics).items():
            (self._bound.get((metric, topic)) or self._bind(metric, topic)).inc(number)

    def _bind(self, metric: Counter, topic: str) -> Counter:
        bound = self._bound[metric, topic] = metric.labels(self._service, topic)
        return bound
