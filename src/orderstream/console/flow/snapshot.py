"""Everything that the monitor knows at one moment: the input of the problems, of `GET /api/flow` and of the pages."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from msgspec import Struct

from orderstream.console.flow.history import Points, average, per_second
from orderstream.console.flow.kafka_reader import KafkaSample
from orderstream.console.flow.postgres_reader import PostgresSample
from orderstream.console.flow.processes_reader import Instance, ProcessesSample
from orderstream.console.flow.source import Reading
from orderstream.console.flow.valkey_reader import ValkeySample
from orderstream.local.provider import ProviderState, state_of

RATE_SECONDS = 7.0
"""A shown rate is that of the last 7 s, which hold three samples while someone looks."""
RATE_UNWATCHED_SECONDS = 25.0

ACCEPTED, SETTLED, LAG, OUTBOX_AGE, DEAD_LETTERS = "accepted", "settled", "lag", "outboxAge", "deadLetters"
"""Names of the series of the overview. DEAD_LETTERS counts the letters that were ever written."""


def lag_of(group: str) -> str:
    """Return the name of the series with the lag of a group."""
    return f"lag {group}"


def letters_of(group: str) -> str:
    """Return the name of the series with the dead letters of a group."""
    return f"letters {group}"


def end_of(topic: str) -> str:
    """Return the name of the series with the number of records that a topic ever had."""
    return f"end {topic}"


class Snapshot(Struct, frozen=True):
    """The state of the monitor. `now` and the times of the readings and points are those of `time.monotonic`."""

    now: float
    at: datetime
    started_at: float
    kafka: Reading[KafkaSample] = Reading()
    postgres: Reading[PostgresSample] = Reading()
    valkey: Reading[ValkeySample] = Reading()
    processes: Reading[ProcessesSample] = Reading()
    history: Mapping[str, Points] = {}
    services: tuple[str, ...] = ()
    """The services whose processes the monitor asks. Others are not known here."""
    local: bool = False
    """Whether the local stack runs these processes and restarts them."""
    outbox_limit: int = 100_000

    def time_of(self, monotonic: float) -> datetime:
        """Return the time of day of a monotonic time."""
        return self.at - timedelta(seconds=self.now - monotonic)

    def rate(self, series: str) -> float | None:
        """Return by how much a series grows per second."""
        points = self.history.get(series, ())
        found = per_second(points, self.now, RATE_SECONDS)
        return per_second(points, self.now, RATE_UNWATCHED_SECONDS) if found is None else found

    def mean(self, series: str) -> float | None:
        """Return the mean of the last values of a series."""
        points = self.history.get(series, ())
        found = average(points, self.now, RATE_SECONDS)
        return average(points, self.now, RATE_UNWATCHED_SECONDS) if found is None else found

    def instances_of(self, service: str) -> list[Instance]:
        """Return the processes of a service that were asked."""
        sample = self.processes.value
        return [] if sample is None else [found for found in sample.instances if found.target.service == service]

    @property
    def provider(self) -> ProviderState | None:
        """What the payment-workers know of the provider; None if none of them shows its metrics."""
        pages = [instance.page for instance in self.instances_of("payment-worker") if instance.page]
        return state_of(pages) if pages else None

    def lag(self, group: str) -> int | None:
        """Return how many records a group has not taken yet."""
        sample = self.kafka.value
        return None if sample is None else sum(sample.lag(group).values())
