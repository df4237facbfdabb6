"""Chooses the batch size of each topic after Kafka refused larger batches, as with a low `max.message.bytes` (P1).

Kafka refuses a batch as a whole. To send 500 records one by one takes seconds, and the next publish would begin with
the same refusal. Therefore the size is reduced in steps, and the size that Kafka accepted is remembered for a while.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

BATCH_BYTES = (1_000_000, 65_536, 8_192, 1_024, 1)
"""Maximum size of a batch in each step. In the last step each batch has one record."""
REMEMBERED_MAX = len(BATCH_BYTES) - 2
"""No publish begins with batches of one record, because they are too slow."""
REMEMBERED_SECONDS = 60
"""After this time, a publish begins with the largest batches again."""


class _Record(Protocol):
    @property
    def topic(self) -> str: ...


class BatchSizes:
    """Remembers for each topic the size, an index of BATCH_BYTES, that Kafka accepted after a larger one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sizes: dict[str, tuple[int, float]] = {}

    def sort(self, records: Sequence[_Record], indexes: Collection[int]) -> list[list[int]]:
        """Return for each size the indexes of the records to send first with this size."""
        if self._sizes:
            now = self._clock()
            self._sizes = {topic: (size, until) for topic, (size, until) in self._sizes.items() if until > now}
        sorted_by_size: list[list[int]] = [[] for _ in BATCH_BYTES]
        if not self._sizes:
            sorted_by_size[0] = list(indexes)
            return sorted_by_size
        for index in indexes:
            size, _ = self._sizes.get(records[index].topic, (0, 0.0))
            sorted_by_size[size].append(index)
        return sorted_by_size

    def note(self, size: int, topics: Collection[str]) -> None:
        """Note that Kafka accepted records of these topics with this size, after it had refused the larger size."""
        for topic in topics:
            self._sizes[topic] = (min(size, REMEMBERED_MAX), self._clock() + REMEMBERED_SECONDS)
