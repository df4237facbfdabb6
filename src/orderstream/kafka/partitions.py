"""A partition as a key, `(topic, number)`, the offsets that Kafka returns, and the partition of a record's key."""

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


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition to which the producers send a record with this key: murmur2, as in Kafka's own client.

    `partitions` is the number of partitions of the topic. If partitions were added, an older record may be elsewhere.
    """
    return (_murmur2(key) & 0x7FFF_FFFF) % partitions


def _murmur2(data: bytes) -> int:
    """Return the hash of `org.apache.kafka.common.utils.Utils.murmur2` as an unsigned number of 32 bits."""
    mask, multiplier = 0xFFFF_FFFF, 0x5BD1_E995
    value = 0x9747_B28C ^ len(data)
    whole = len(data) & ~3
    for begin in range(0, whole, 4):
        word = int.from_bytes(data[begin : begin + 4], "little") * multiplier & mask
        word = (word ^ word >> 24) * multiplier & mask
        value = (value * multiplier & mask) ^ word
    if rest := data[whole:]:
        value = (value ^ int.from_bytes(rest, "little")) * multiplier & mask
    value = (value ^ value >> 13) * multiplier & mask
    return value ^ value >> 15
