"""Samples Kafka: the first and the last offset of each partition, and the offsets that each group has committed.

It never joins a group and never commits. A sample takes at most ANSWER_SECONDS.
"""

import time
from collections.abc import Mapping

from confluent_kafka import Consumer, KafkaException
from msgspec import Struct
from msgspec.structs import replace

from orderstream.domain.events import TOPICS
from orderstream.domain.saga import CONSUMER_GROUPS, topics_of
from orderstream.kafka.client import consumer
from orderstream.kafka.group_offsets import committed_offsets, log_offsets, position
from orderstream.kafka.partitions import LOG_END, LOG_START, TopicAndPartition
from orderstream.kafka.topics import dead_letter_topic
from orderstream.settings import Settings

ANSWER_SECONDS = 3.0
PARTITIONS_SECONDS = 30.0
"""How often the partitions and their first offsets are read. They change rarely. A missing topic is sought at once."""
LOCAL_ERRORS_BELOW = -1
"""Codes of librdkafka's own errors are below this. Kafka itself has answered with any other code."""
PARTITIONS_PER_SECOND = 2_000
"""Partitions whose offsets are read per second at most. With more of them, offsets are read less often."""

OUR_TOPICS = (*TOPICS, *map(dead_letter_topic, CONSUMER_GROUPS))


class KafkaSample(Struct, frozen=True):
    """The offsets of our topics, whose names have no prefix. `next` is the position of a group by its name."""

    brokers: int
    firsts: Mapping[TopicAndPartition, int]
    ends: Mapping[TopicAndPartition, int]
    next: Mapping[str, Mapping[TopicAndPartition, int]]
    measured_at: float
    """Monotonic time at which the offsets were read. A sample that only asked whether Kafka answers keeps it."""
    problem: str | None = None
    """Why Kafka answered without offsets: for example, a partition has no leader."""

    def end_of(self, topic: str) -> int:
        """Return the sum of the end offsets of a topic."""
        return sum(end for (name, _), end in self.ends.items() if name == topic)

    def records_in(self, topic: str) -> int:
        """Return how many records a topic holds, as far as its offsets tell."""
        return sum(end - self.firsts.get(key, end) for key, end in self.ends.items() if key[0] == topic)

    def lag(self, group: str) -> dict[TopicAndPartition, int]:
        """Return the lag of a group in each partition."""
        return {key: max(0, self.ends[key] - offset) for key, offset in self.next[group].items() if key in self.ends}


class KafkaReader:
    """Keeps one consumer for each group, because a consumer reads only the offsets of its own group."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[str, Consumer] = {}
        self._prefix = settings.kafka_topic_prefix
        self._brokers = 0
        self._partitions: list[TopicAndPartition] = []
        self._firsts: dict[TopicAndPartition, int] = {}
        self._partitions_at = float("-inf")
        self._last = KafkaSample(0, {}, {}, {group: {} for group in CONSUMER_GROUPS}, float("-inf"))

    def ask(self) -> KafkaSample:
        """Return a sample. If Kafka answers and refuses the offsets, it is the last one, with the problem.

        Raises KafkaException, KafkaRefusedError or SettingsError.
        """
        now = time.monotonic()
        deadline = now + ANSWER_SECONDS
        for group in CONSUMER_GROUPS:
            if group not in self._clients:
                self._clients[group] = consumer(self._settings, group)
            self._clients[group].poll(0)  # Delivers pending log lines and errors, which would pile up.
        client = self._clients[CONSUMER_GROUPS[0]]
        try:
            if not self._is_due(client, now, deadline):
                client.list_topics(self._prefix + OUR_TOPICS[0], timeout=ANSWER_SECONDS)
                return self._last
            self._last = self._sample(client, now, deadline)
        except KafkaException as error:
            if error.args[0].code() < LOCAL_ERRORS_BELOW:
                raise
            self._partitions_at = float("-inf")
            return replace(self._last, problem=str(error.args[0].str()))
        return self._last

    def _is_due(self, client: Consumer, now: float, deadline: float) -> bool:
        """Read the partitions if they are unknown or old. Return whether it is time to read the offsets."""
        missing = len({topic for topic, _ in self._partitions}) < len(OUR_TOPICS)
        if missing or now - self._partitions_at > PARTITIONS_SECONDS:
            self._read_partitions(client, deadline)
            self._partitions_at = now
            return True
        return now - self._last.measured_at >= len(self._partitions) / PARTITIONS_PER_SECOND

    def _sample(self, client: Consumer, now: float, deadline: float) -> KafkaSample:
        committed = {group: self._committed(group, deadline) for group in CONSUMER_GROUPS}
        # The ends come last, so that no end is below a committed offset.
        ends = log_offsets(client, self._partitions, LOG_END, deadline)
        positions = {
            group: {
                self._ours(key): position(offset, min(self._firsts[key], ends[key]), ends[key])
                for key, offset in offsets.items()
            }
            for group, offsets in committed.items()
        }
        return KafkaSample(
            brokers=self._brokers,
            firsts={self._ours(key): offset for key, offset in self._firsts.items()},
            ends={self._ours(key): offset for key, offset in ends.items()},
            next=positions,
            measured_at=now,
        )

    def _read_partitions(self, client: Consumer, deadline: float) -> None:
        found = client.list_topics(timeout=max(0.1, deadline - time.monotonic()))
        self._brokers = len(found.brokers)
        self._partitions = [
            (self._prefix + topic, number)
            for topic in OUR_TOPICS
            if (known := found.topics.get(self._prefix + topic)) is not None and known.error is None
            for number in known.partitions
        ]
        self._firsts = log_offsets(client, self._partitions, LOG_START, deadline)

    def _committed(self, group: str, deadline: float) -> dict[TopicAndPartition, int]:
        topics = {self._prefix + topic for topic in topics_of(group)}
        wanted = [key for key in self._partitions if key[0] in topics]
        return committed_offsets(self._clients[group], wanted, deadline)

    def _ours(self, key: TopicAndPartition) -> TopicAndPartition:
        return key[0].removeprefix(self._prefix), key[1]

    def close(self) -> None:
        """Close the clients."""
        for client in self._clients.values():
            client.close()
