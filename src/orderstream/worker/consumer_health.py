"""Measures the lag of one consumer and detects that it is stalled: records wait, and it receives none (P5).

After a topic was deleted and created again, librdkafka may keep the identity of the deleted topic. It then fetches
nothing from the topic and reports no error. A new consumer fetches again. A consumer is not stalled while it receives
waiting records of other partitions, because it returns the records that it has fetched of them first. A topic that is
paused because it has no room is not stalled either.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from confluent_kafka import Consumer, TopicPartition
from msgspec import Struct

from orderstream.kafka.group_offsets import GroupOffsets
from orderstream.kafka.group_offsets import position as position_in_log
from orderstream.kafka.partitions import TopicAndPartition, offsets_of

ANSWER_SECONDS = 1.0
"""Time limit of each request to Kafka."""
STALLED_SECONDS = 15.0
"""A partition is stalled if its records have waited this long while the loop polled."""

PASSED_OVER_RECORDS = 100_000
"""After this number of records of other partitions, the 8 MiB fetched ahead hold no record of a waiting partition."""


class _Waiting(Struct, frozen=True):
    """A partition with waiting records: its position, since when, and the records received in total until then."""

    position: int
    since: float
    received: int


class ConsumerHealth:
    """The lag of one consumer, and the partitions in which it makes no progress."""

    def __init__(self, clock: Callable[[], float], topics: Sequence[str]) -> None:
        self._clock = clock
        self._topics = topics
        self._waiting: dict[TopicAndPartition, _Waiting] = {}
        self._received = 0
        """Records received of all partitions."""
        self._positions: dict[TopicAndPartition, int] = {}
        self._moved_at = float("-inf")
        """Time at which the consumer last received records of a partition with a backlog."""
        self._topics_were_lost = False
        self._idle_since: float | None = None

    def lag(
        self,
        positions: Mapping[TopicAndPartition, int],
        offsets: Mapping[TopicAndPartition, GroupOffsets],
        may_wait: Collection[str] = (),
    ) -> dict[TopicAndPartition, int]:
        """Return the number of waiting records in each assigned partition. The topics in `may_wait` are not stalled.

        `positions` are the consumer's, of its partitions, negative if it has received nothing. `offsets` are those of
        all partitions of its topics. They must be read after the positions, so that no end is below a position. A
        consumer without partitions returns nothing, but watches all partitions: other consumers may have them, or no
        consumer may have them if the group was formed while its topics were missing.
        """
        self._note_idle(idle=not positions and bool(offsets))
        starts, lag = {}, {}
        for partition, group in offsets.items():
            if positions and partition not in positions:
                continue
            position = positions.get(partition, -1)
            starts[partition] = group.next if position < 0 else position_in_log(position, group.first, group.end)
            lag[partition] = group.end - starts[partition]
        self._note(starts, {partition: 0 if partition[0] in may_wait else lag[partition] for partition in lag})
        return lag if positions else {}

    def _note(self, starts: dict[TopicAndPartition, int], lag: dict[TopicAndPartition, int]) -> None:
        """Note the position of each partition, and since when each partition with waiting records has not moved."""
        now, waiting = self._clock(), {}
        moved = {partition for partition, start in starts.items() if start > self._positions.get(partition, start)}
        self._received += sum(starts[partition] - self._positions[partition] for partition in moved)
        if any(lag[partition] or partition in self._waiting for partition in moved):
            self._moved_at = now
        for partition, records in lag.items():
            if records:
                before = self._waiting.get(partition)
                if before is None or before.position != starts[partition]:
                    before = _Waiting(starts[partition], now, self._received)
                waiting[partition] = before
        self._positions, self._waiting = starts, waiting

    def stalled(self) -> list[TopicAndPartition]:
        """Return the partitions whose records wait too long.

        A partition that only waits until the consumer has received the backlog of others is left out.
        """
        now = self._clock()
        return sorted(
            partition
            for partition, waiting in self._waiting.items()
            if now - waiting.since > STALLED_SECONDS
            and (now - self._moved_at > STALLED_SECONDS or self._received - waiting.received > PASSED_OVER_RECORDS)
        )

    def _note_idle(self, *, idle: bool) -> None:
        if not idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self._clock()

    def topics_lost(self) -> None:
        """Note that topics are missing. A group that is formed meanwhile may never assign partitions."""
        self._topics_were_lost = True

    def unassigned(self) -> bool:
        """Say whether this consumer lost its topics and has had no partition for too long since then.

        An idle replica never has a partition. Therefore the consumer is replaced only once for each loss of topics.
        """
        return (
            self._topics_were_lost
            and self._idle_since is not None
            and self._clock() - self._idle_since > STALLED_SECONDS
        )

    def reset(self) -> None:
        """Forget all waiting records. Call this when polling was interrupted."""
        self._waiting.clear()
        self._positions = {}
        self._idle_since = None


def positions_of(consumer: Consumer, partitions: list[TopicPartition]) -> dict[TopicAndPartition, int]:
    """Return the consumer's position in each of these partitions, negative if it has received nothing there."""
    return offsets_of(consumer.position(partitions)) if partitions else {}


def positions_ahead_of_group(
    positions: Mapping[TopicAndPartition, int],
    offsets: Mapping[TopicAndPartition, GroupOffsets],
    rewound: Collection[TopicAndPartition],
) -> dict[TopicAndPartition, int]:
    """Return the position in each partition without lag, if it is ahead of the group's committed offset.

    A transaction of another producer leaves a marker after its records. The consumer skips the marker and returns no
    record for it. Without a commit, the group would seem to be one record behind all the time. Partitions in `rewound`
    are skipped, because their position may be ahead of records that are not processed.
    """
    return {
        partition: group.end
        for partition, group in offsets.items()
        if positions.get(partition) == group.end > group.next and partition not in rewound
    }


def offsets_at(consumer: Consumer, partitions: list[TopicPartition], which: int) -> dict[TopicAndPartition, int]:
    """Return the LOG_START or LOG_END offset of each partition for which Kafka returns one."""
    wanted = [TopicPartition(partition.topic, partition.partition, which) for partition in partitions]
    answers = consumer.offsets_for_times(wanted, timeout=ANSWER_SECONDS)
    return offsets_of(answer for answer in answers if answer.error is None and answer.offset >= 0)
