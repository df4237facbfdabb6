"""Detects a topic that acknowledges nothing while other topics do, such as a topic with too few replicas.

Each publish to such a topic would delay all other records by the delivery timeout. Therefore the topic is suspended:
its records count as refused. After STUCK_EVIDENCE_SECONDS, one publish tries the topic again.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from confluent_kafka import KafkaError

from orderstream.kafka.errors import REFUSED
from orderstream.kafka.publication import Publication

STUCK_FAILURES_MAX = 3
"""A topic is suspended after this many publishes in a row without an acknowledgement, while another topic had one."""
STUCK_EVIDENCE_SECONDS = 60
"""Time for which an acknowledgement shows that Kafka works. A suspended topic is tried again after the same time."""


class StuckTopics:
    """The topics that are suspended, and the evidence for and against the others."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._acknowledged: dict[str, float] = {}
        self._failures: dict[str, list[float]] = {}
        self._suspended_until: dict[str, float] = {}

    def is_suspended(self, topic: str) -> bool:
        """Say whether records of the topic are not to be sent now."""
        return bool(self._suspended_until) and self._suspended_until.get(topic, 0) > self._clock()

    def note(
        self, records: Sequence[Publication], failures: Mapping[int, KafkaError], untried: Collection[int]
    ) -> None:
        """Note the outcome of one publish. `failures` and `untried` have the indexes of records."""
        now = self._clock()
        failing = {records[index].topic for index, error in failures.items() if error.code() not in REFUSED}
        if failures or untried:
            passing = {record.topic for index, record in enumerate(records) if index not in failures}
            passing -= {records[index].topic for index in untried}
        else:
            passing = {record.topic for record in records}
        for topic in passing:
            self._acknowledged[topic] = now
            if self._failures:
                self._failures.pop(topic, None)
                self._suspended_until.pop(topic, None)
        recent = {topic for topic, at in self._acknowledged.items() if now - at < STUCK_EVIDENCE_SECONDS}
        for topic in failing - recent if recent else ():
            failed_at = self._failures.setdefault(topic, [])
            failed_at[:] = [*failed_at[: STUCK_FAILURES_MAX - 1], now]
            if len(failed_at) == STUCK_FAILURES_MAX and max(self._acknowledged.values()) >= failed_at[0]:
                self._suspended_until[topic] = now + STUCK_EVIDENCE_SECONDS
