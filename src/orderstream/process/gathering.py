"""Says how long a process gathers items for a larger batch: in proportion to its last batch.

A batch has a cost of its own in Kafka, in PostgreSQL and in the process, so that fewer and larger batches cost less.
After a batch of a single item, no item waits. While n items arrive per second, a large batch is
1 / (1 - n * seconds_per_item) times as large as it would be without waiting, until the wait is the longest one
(decisions 0046 and 0048).
"""

from msgspec import Struct

BATCH_RECORDS = 700
"""A worker keeps a part of the memory of its largest batch (decision 0046)."""


class Gathering(Struct, frozen=True):
    """The rule of one batch loop. A last batch of fewer than `from_items` items indicates that there is no queue."""

    from_items: int
    seconds_per_item: float
    longest_seconds: float
    shortest_seconds: float = 0.0
    early_topics: tuple[str, ...] = ()
    """Topics whose records may wait a moment for the record of another topic that usually follows them."""
    records_max: int = BATCH_RECORDS
    """The largest number of records in one batch of a worker."""

    def seconds(self, last_items: int) -> float:
        """Return how long to wait for more items after a batch of `last_items`, in seconds."""
        if last_items < self.from_items:
            return 0.0
        return min(self.longest_seconds, max(self.shortest_seconds, last_items * self.seconds_per_item))


NO_GATHERING = Gathering(0, 0.0, 0.0)
"""The next batch begins at once."""
GATHER_SECONDS = 0.12
OF_RECORDS = Gathering(from_items=2, seconds_per_item=0.0004, shortest_seconds=0.005, longest_seconds=GATHER_SECONDS)
"""For the relay, and for a worker that passes records on: the next service waits for them."""
