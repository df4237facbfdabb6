"""The partition of a key is the one that Kafka's own client chooses."""

import pytest

from orderstream.kafka.partitions import partition_of

# From Kafka's UtilsTest.testMurmur2, as signed numbers of 32 bits.
HASHES = {
    b"21": -973_932_308,
    b"foobar": -790_332_482,
    b"a-little-bit-long-string": -985_981_536,
    b"a-little-bit-longer-string": -1_486_304_829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58_897_971,
    b"abc": 479_470_107,
}


@pytest.mark.parametrize(("key", "value"), HASHES.items())
def test_a_key_has_the_partition_that_kafka_chooses(key: bytes, value: int) -> None:
    assert partition_of(key, 1 << 31) == value & 0x7FFF_FFFF
    assert partition_of(key, 7) == (value & 0x7FFF_FFFF) % 7


def test_a_topic_with_one_partition_has_only_that() -> None:
    assert {partition_of(str(number).encode(), 1) for number in range(100)} == {0}
