"""Where topics end, and where a consumer group has arrived, asked by a consumer that does not join the group.

The AdminClient can tell it too, but a librdkafka client may abort its whole process when a broker dies while an admin
request to a group's coordinator is on its way (librdkafka issue 4605). These requests of a consumer do not.
"""

import time
from collections.abc import Collection, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from msgspec import Struct

_END, _FIRST = -1, -2

Place = tuple[str, int]
"""Topic and partition."""


class Standing(Struct, frozen=True):
    """Offsets of one partition: of its first record, of the record that the group takes next, and behind its last."""

    first: int
    taken: int
    end: int


def standings(client: Consumer, topics: Collection[str], deadline: float) -> dict[Place, Standing]:
    """Return the standing of the client's group in each partition of those topics that Kafka has, by their full names.

    A group that has committed nothing, or whose topic was made again since, is at the first record. Raises
    KafkaException when Kafka has not answered by `deadline`, a time of `time.monotonic`, and KafkaRefusedError when it
    does not take us.
    """
    client.poll(0)  # It hands over log lines and errors, which would pile up.
    known = client.list_topics(timeout=_left(deadline)).topics
    partitions = [
        TopicPartition(topic, number)
        for topic in topics
        if topic in known and known[topic].error is None
        for number in known[topic].partitions
    ]
    if not partitions:
        return {}
    # The ends come last, so that none is before a committed offset.
    committed = _offsets(client.committed(partitions, timeout=_left(deadline)))
    firsts = _ask(client, partitions, _FIRST, deadline)
    ends = _ask(client, partitions, _END, deadline)
    return {
        place: Standing(first, taken if first <= taken <= ends[place] else first, ends[place])
        for place, first in firsts.items()
        for taken in (committed[place],)
    }


def _ask(client: Consumer, partitions: Sequence[TopicPartition], which: int, deadline: float) -> dict[Place, int]:
    wanted = [TopicPartition(partition.topic, partition.partition, which) for partition in partitions]
    return _offsets(client.offsets_for_times(wanted, timeout=_left(deadline)))


def _offsets(answers: Sequence[TopicPartition]) -> dict[Place, int]:
    for answer in answers:
        if answer.error is not None:
            raise KafkaException(answer.error)
    return {(answer.topic, answer.partition): answer.offset for answer in answers}


def _left(deadline: float) -> float:
    """Return the seconds that are left. Raises KafkaException when none are: librdkafka takes 0 for no limit."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    return seconds
