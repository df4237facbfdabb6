"""Measures what waits for a consumer, and notices one that is stalled: records wait, and it takes none (P5).

The client library may keep the identity of a topic that was deleted and made again. From then on it fetches nothing of
that topic and reports nothing. A new consumer fetches again. A consumer is not stalled while it takes records of other
partitions that wait: what it has fetched of them comes first, however long that takes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from confluent_kafka import Consumer, TopicPartition
from msgspec import Struct

ASK_SECONDS = 1.0
DEAF_SECONDS = 15.0
"""Records that wait for so long, while the loop polls, are not on their way."""

PASSED_OVER_RECORDS = 100_000
"""When other partitions have given this number of records, one that waits is not among the 8 MiB fetched ahead."""

_END, _FIRST = -1, -2

Place = tuple[str, int]
"""Topic and partition."""


class _Still(Struct, frozen=True):
    """A partition in which records wait: its position, since when it is there, and what was taken of all by then."""

    position: int
    since: float
    taken: int


class Progress:
    """What one consumer has left to take, and since when it has not moved."""

    def __init__(self, clock: Callable[[], float], topics: Sequence[str]) -> None:
        self._clock = clock
        self._topics = topics
        self._still: dict[Place, _Still] = {}
        """Where records wait."""
        self._taken = 0
        """Records taken of all partitions."""
        self._positions: dict[Place, int] = {}
        self._moved_at = float("-inf")
        """When records of a partition with a backlog were taken last."""
        self._may_be_left_out = False
        self._idle_since: float | None = None

    def waiting(self, consumer: Consumer) -> dict[Place, int]:
        """Return how many records wait in each assigned partition.

        A consumer that the group gave no partition returns nothing, but looks after all of them: others may have them,
        or nobody, when the group was formed while its topics were gone. Raises KafkaException when Kafka does not
        answer: nothing is known then.
        """
        assigned = consumer.assignment()
        watched = assigned or self._partitions(consumer)
        self._note_idle(idle=not assigned and bool(watched))
        if not watched:
            self._still.clear()
            return {}
        ends, firsts = _ask(consumer, watched, _END), _ask(consumer, watched, _FIRST)
        positions = _offsets(consumer.position(watched))
        if untouched := [one for one in watched if positions[_place(one)] < 0]:
            positions |= _offsets(consumer.committed(untouched, timeout=ASK_SECONDS))
        starts = {}
        for place, end in ends.items():
            first, position = firsts.get(place, 0), positions[place]
            starts[place] = position if first <= position <= end else first
        waiting = {place: end - starts[place] for place, end in ends.items()}
        self._note(starts, waiting)
        return waiting if assigned else {}

    def _note(self, starts: dict[Place, int], waiting: dict[Place, int]) -> None:
        """Note where each partition is, and since when those stand still in which records wait."""
        now, still = self._clock(), {}
        moved = {place for place, start in starts.items() if start > self._positions.get(place, start)}
        self._taken += sum(starts[place] - self._positions[place] for place in moved)
        if any(waiting[place] or place in self._still for place in moved):
            self._moved_at = now
        for place, records in waiting.items():
            if records:
                before = self._still.get(place)
                is_still = before is not None and before.position == starts[place]
                still[place] = before if before and is_still else _Still(starts[place], now, self._taken)
        self._positions, self._still = starts, still

    def _partitions(self, consumer: Consumer) -> list[TopicPartition]:
        known = consumer.list_topics(timeout=ASK_SECONDS).topics
        return [
            TopicPartition(name, number) for name in self._topics if name in known for number in known[name].partitions
        ]

    def deaf(self) -> list[Place]:
        """Return the partitions whose records have been waiting too long, though nothing was taken before them."""
        now = self._clock()
        return sorted(
            place
            for place, still in self._still.items()
            if now - still.since > DEAF_SECONDS
            and (now - self._moved_at > DEAF_SECONDS or self._taken - still.taken > PASSED_OVER_RECORDS)
        )

    def _note_idle(self, *, idle: bool) -> None:
        if not idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self._clock()

    def topics_lost(self) -> None:
        """Note that topics are gone: a group that forms meanwhile may leave out who is in it, and not look again."""
        self._may_be_left_out = True

    def left_out(self) -> bool:
        """Say whether the group, formed while its topics were gone, has had no partition for this consumer since.

        It may be an idle replica that never has one; so it is said once for each loss.
        """
        return (
            self._may_be_left_out and self._idle_since is not None and self._clock() - self._idle_since > DEAF_SECONDS
        )

    def begin_anew(self) -> None:
        """Forget what was waiting: there is a new consumer, or polling was interrupted."""
        self._still.clear()
        self._positions = {}
        self._idle_since = None


def ahead_of_group(
    consumer: Consumer, waiting: Mapping[Place, int], given_back: Collection[Place]
) -> list[TopicPartition]:
    """Return where the consumer is in partitions in which no record waits, if the group's offset is lower.

    A transaction of anyone else leaves a marker behind its records. The consumer steps over it and returns nothing, and
    the group would seem to be one record behind without end. Where records were given back to Kafka and have not come
    again, the consumer may be behind them. Raises KafkaException without an answer.
    """
    idle = [TopicPartition(*place) for place, records in waiting.items() if not records and place not in given_back]
    if not idle:
        return []
    committed = _offsets(consumer.committed(idle, timeout=ASK_SECONDS))
    return [position for position in consumer.position(idle) if position.offset > max(committed[_place(position)], 0)]


def _ask(consumer: Consumer, assigned: list[TopicPartition], which: int) -> dict[Place, int]:
    """Return the first or the next offset of each partition that Kafka can tell it of."""
    wanted = [TopicPartition(one.topic, one.partition, which) for one in assigned]
    answers = consumer.offsets_for_times(wanted, timeout=ASK_SECONDS)
    return {_place(one): one.offset for one in answers if one.error is None and one.offset >= 0}


def _offsets(places: list[TopicPartition]) -> dict[Place, int]:
    return {_place(one): one.offset for one in places}


def _place(one: TopicPartition) -> Place:
    return one.topic, one.partition
