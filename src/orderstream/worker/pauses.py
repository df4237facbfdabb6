"""Pauses the partitions of the topics for which a handler has no room, so that their records wait in Kafka (P5).

librdkafka returns no record of a paused partition. A pause discards the records that are fetched already, and the
position stays. A partition that the group takes away and assigns again stays paused. A new partition is not paused.

After a pause, the partitions take turns: one of them is resumed alone for a moment. Fetched records wait in the order
of their partitions, and each pause discards the end of this queue. Without turns, the last partition would starve.
"""

import contextlib
import time
from collections.abc import Callable, Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition

from orderstream.kafka.partitions import LOG_END, TopicAndPartition, key_of
from orderstream.telemetry import logs
from orderstream.worker.consumer_health import offsets_at
from orderstream.worker.meters import WorkerMeters

FULL_SECONDS = 1.0
"""How long the worker waits for room before it pauses a topic. After a pause, the records must be fetched again, so a
topic that is full for moments only is not paused. The records of other topics wait meanwhile."""
CHECK_SECONDS = 0.005
"""How often the worker looks for room meanwhile."""
TURN_SECONDS = 0.1
"""How long one partition of a topic is resumed alone after a pause. Then all partitions are resumed."""

log = logs.get()


class Pauses:
    """The paused topics of one subscription. Topics are named without `topic_prefix`, except in sets."""

    def __init__(self, room: Callable[[], Mapping[str, int]], topic_prefix: str, meters: WorkerMeters) -> None:
        """`room` is the handler's."""
        self._room = room
        self._prefix = topic_prefix
        self._meters = meters
        self._full: set[str] = set()
        """The topics without room."""
        self._turns: dict[str, float] = {}
        """The topics of which one partition is resumed alone, and until when."""
        self._turn = 0
        """The number of pauses that have ended. It determines the partition that has its turn."""
        self._paused: set[TopicAndPartition] = set()
        self._were_full: set[str] = set()
        """The topics that had no room at any time since the lag was measured."""
        self._are_new = False
        """Whether the consumer may have partitions that are not as `_paused` says."""

    @property
    def are_active(self) -> bool:
        """Whether a topic has no room, or a partition has its turn."""
        return bool(self._full or self._turns)

    def note_assignment(self) -> None:
        """Note that the group has assigned partitions. The next `apply` pauses or resumes all of them."""
        self._are_new = True

    def wait_for_room(self) -> Mapping[str, int]:
        """Return the room of each limited topic. If a topic has just become full, wait FULL_SECONDS at most."""
        deadline = time.monotonic() + FULL_SECONDS
        room = self._room()
        while self._without_room(room) - self._full and time.monotonic() < deadline:
            time.sleep(CHECK_SECONDS)
            room = self._room()
        return room

    def apply(self, consumer: Consumer, room: Mapping[str, int]) -> None:
        """Pause the partitions of the topics without room, and resume all others. Does nothing if nothing changed.

        An error of Kafka is logged, and the next call tries again.
        """
        full = self._without_room(room)
        if full == self._full and not self._are_new and not self._turns:
            return
        now = time.monotonic()
        turns = {topic: until for topic, until in self._turns.items() if until > now and topic not in full}
        ended = self._full - full
        turns |= dict.fromkeys(ended, now + TURN_SECONDS)
        turn = self._turn + bool(ended)
        assigned = consumer.assignment()
        paused = [
            partition
            for partition in assigned
            if partition.topic in full or (partition.topic in turns and not _has_turn(partition, assigned, turn))
        ]
        if not self._set(consumer, assigned, paused):
            return
        if full - self._full:
            log.warning("topics_paused", topics=sorted(full))
        self._full, self._turns, self._turn, self._are_new = full, turns, turn, False
        self._were_full |= full | turns.keys()
        topics = [partition.topic for partition in paused]
        self._meters.paused({topic: topics.count(self._prefix + topic) for topic in room})

    def _set(self, consumer: Consumer, assigned: list[TopicPartition], paused: list[TopicPartition]) -> bool:
        """Pause these partitions and resume the other assigned ones. Return False after an error of Kafka."""
        wanted = {key_of(partition) for partition in paused}
        if wanted == self._paused and not self._are_new:
            return True
        resumed = [partition for partition in assigned if key_of(partition) not in wanted]
        try:
            consumer.pause(paused)
            consumer.resume(resumed)
        except KafkaException as error:
            log.warning("pause_failed", detail=str(error)[:300])
            return False
        if resumed and all(key_of(partition) in self._paused for partition in assigned):
            # librdkafka's thread had nothing to fetch. It sleeps for 1 s if no request wakes it.
            with contextlib.suppress(KafkaException):
                offsets_at(consumer, resumed, LOG_END)
        self._paused = wanted
        return True

    def note_measurement(self) -> None:
        """Note that the lag was measured."""
        self._were_full = set(self._full)

    def may_wait(self, *, assigned: bool) -> set[str]:
        """Return the topics whose records may have waited for room since the last measurement of the lag.

        `assigned` says whether the consumer has partitions. A consumer without partitions cannot see the pauses of
        others. For it, these are all topics with a limit.
        """
        return self._were_full if assigned else {self._prefix + topic for topic in self._room()}

    def _without_room(self, room: Mapping[str, int]) -> set[str]:
        return {self._prefix + topic for topic, records in room.items() if records <= 0}


def _has_turn(partition: TopicPartition, assigned: list[TopicPartition], turn: int) -> bool:
    """Say whether this partition is the one of its topic that has this turn."""
    numbers = sorted(other.partition for other in assigned if other.topic == partition.topic)
    return partition.partition == numbers[turn % len(numbers)]
