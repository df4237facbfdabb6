"""A partition as a key, `(topic, number)`, and the offsets that Kafka returns for partitions."""

from collections.abc import Iterable

from confluent_kafka import TopicPartition

TopicAndPartition = tuple[str, int]

LOG_END, LOG_START = -1, -2
"""Arguments of `Consumer.offsets_for_times` for the offset after the last record and that of the first record."""


def key_of(partition: TopicPartition) -> TopicAndPartition:
    """Return the topic and the number of a partition."""
    return partition.topic, partition.partition


def offsets_of(partitions: Iterable[TopicPartition]) -> dict[TopicAndPartition, int]:
    """Return the offset of each partition."""
    return {key_of(partition): partition.offset for partition in partitions}
