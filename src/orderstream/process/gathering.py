"""Says how long a process gathers items for a larger batch: in proportion to its last batch.

A batch has a cost of its own in Kafka, in PostgreSQL and in the process, so that fewer and larger batches cost less.
Few items never wait. While n items arrive per second, a batch is 1 / (1 - n * seconds_per_item) times as large as it
would be without waiting, until the wait is the longest one (decision 0046).
"""

from msgspec import Struct


class Gathering(Struct, frozen=True):
    """The rule of one batch loop. A last batch of fewer than `from_items` items indicates that there is no queue."""

    from_items: int
    seconds_per_item: float
    longest_seconds: float

    def seconds(self, last_items: int) -> float:
        """Return how long to wait for more items after a batch of `last_items`, in seconds."""
        if last_items < self.from_items:
            return 0.0
        return min(self.longest_seconds, last_items * self.seconds_per_item)


NO_GATHERING = Gathering(0, 0.0, 0.0)
"""The next batch begins at once."""
GATHER_SECONDS = 0.12
OF_RECORDS = Gathering(from_items=5, seconds_per_item=0.0004, longest_seconds=GATHER_SECONDS)
"""For the relay, and for a worker that passes records on: the next service waits for them."""
