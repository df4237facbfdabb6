"""Reads where topics end and which offsets a consumer group has committed, with a consumer that does not join it.

The AdminClient has these requests too. But if a broker dies during an admin request to a group's coordinator,
librdkafka may abort the whole process (librdkafka issue 4605). The requests of a consumer do not.
"""

import time
from collections.abc import Collection, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from msgspec import Struct

from orderstream.kafka.partitions import LOG_END, LOG_START, TopicAndPartition, offsets_of


class GroupOffsets(Struct, frozen=True):
    """Offsets of one partition: of its first record, of the next record of the group, and after its last record."""

    first: int
    next: int
    end: int


def group_offsets(client: Consumer, topics: Collection[str], deadline: float) -> dict[TopicAndPartition, GroupOffsets]:
    """Return the offsets of the client's group in each partition of `topics` (full names) that exists in Kafka.

    If the group has committed nothing, or the topic was deleted and created again, the group is at the first record.
    Raises KafkaException when Kafka does not answer by `deadline` (a time of `time.monotonic`), and KafkaRefusedError
    when it refuses this client.
    """
    client.poll(0)  # Delivers pending log lines and errors, which would pile up.
    known = client.list_topics(timeout=_left(deadline)).topics
    partitions = [
        (topic, number)
        for topic in topics
        if topic in known and known[topic].error is None
        for number in known[topic].partitions
    ]
    # The ends come last, so that no end is below a committed offset.
    committed = committed_offsets(client, partitions, deadline)
    firsts = log_offsets(client, partitions, LOG_START, deadline)
    ends = log_offsets(client, partitions, LOG_END, deadline)
    return {
        partition: GroupOffsets(first, position(committed[partition], first, ends[partition]), ends[partition])
        for partition, first in firsts.items()
    }


def position(committed: int, first: int, end: int) -> int:
    """Return the offset of the next record of a group: the committed one, or `first` if that one is not in the log."""
    return committed if first <= committed <= end else first


def committed_offsets(
    client: Consumer, partitions: Collection[TopicAndPartition], deadline: float
) -> dict[TopicAndPartition, int]:
    """Return the offset that the client's group has committed in each partition; negative if it has committed none.

    Raises the same errors as `group_offsets`.
    """
    if not partitions:
        return {}
    wanted = [TopicPartition(*partition) for partition in partitions]
    return _checked_offsets(client.committed(wanted, timeout=_left(deadline)))


def log_offsets(
    client: Consumer, partitions: Collection[TopicAndPartition], which: int, deadline: float
) -> dict[TopicAndPartition, int]:
    """Return LOG_START or LOG_END of each partition. Raises the same errors as `group_offsets`."""
    if not partitions:
        return {}
    wanted = [TopicPartition(*partition, which) for partition in partitions]
    return _checked_offsets(client.offsets_for_times(wanted, timeout=_left(deadline)))


def _checked_offsets(answers: Sequence[TopicPartition]) -> dict[TopicAndPartition, int]:
    for answer in answers:
        if answer.error is not None:
            raise KafkaException(answer.error)
    return offsets_of(answers)


def _left(deadline: float) -> float:
    """Return the seconds until the deadline. Raises KafkaException after it: for librdkafka, 0 is "no limit"."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return seconds
