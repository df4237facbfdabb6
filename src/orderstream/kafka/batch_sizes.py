"""How large the batches of each topic are, after Kafka refused larger ones, as with a low `max.message.bytes` (P1).

Kafka refuses a batch as a whole. Sent alone, one by one, 500 records take seconds, and the next publish would begin
with the same refusal. So the size goes down in steps, and the one that Kafka took is remembered for a while.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

BATCH_BYTES = (1_000_000, 65_536, 8_192, 1_024, 1)
"""What a batch holds at most, step by step; in the last step each record is alone."""
REMEMBERED_MAX = len(BATCH_BYTES) - 2
"""No publish begins with records that are alone: they are too slow."""
REMEMBERED_SECONDS = 60
"""After so long a publish begins with the largest batches again."""


class _Record(Protocol):
    @property
    def topic(self) -> str: ...


class BatchSizes:
    """Remembers for each topic the size, an index of BATCH_BYTES, that Kafka took when it had refused larger ones."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sizes: dict[str, tuple[int, float]] = {}

    def sort(self, records: Sequence[_Record], indexes: Collection[int]) -> list[list[int]]:
        """Return for each size which records are to be sent in it first."""
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
        """Note that Kafka took records of these topics in this size, having refused them in the larger one."""
        for topic in topics:
            self._sizes[topic] = (min(size, REMEMBERED_MAX), self._clock() + REMEMBERED_SECONDS)
