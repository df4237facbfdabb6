"""Finds the time up to which the workers have consumed all events: an order that waits in Kafka is not stalled (P5).

The watchdog notes the ends of the topics, together with a time of the database's clock. When the committed offsets of
every worker have passed those ends, the workers have consumed every event that was in Kafka at that time. The clocks of
Kafka and of the services do not matter.
"""

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Self

from confluent_kafka import Consumer, KafkaException
from msgspec import Struct

from orderstream.domain import saga
from orderstream.domain.events import topic_of
from orderstream.kafka.client import consumer
from orderstream.kafka.errors import KafkaRefusedError
from orderstream.kafka.group_offsets import group_offsets
from orderstream.kafka.partitions import TopicAndPartition
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load
from orderstream.settings import Settings
from orderstream.telemetry import logs

ASK_SECONDS = 2.0
"""How long an answer of Kafka is used."""
ANSWER_SECONDS = 1.0
"""Longest wait for the offsets of all groups together."""
POINTS_MAX = 64
"""Largest number of noted times. Beyond it, every second one is dropped, and the following times are as far apart."""

READERS: dict[str, tuple[str, ...]] = {
    group: events
    for group in saga.CONSUMER_GROUPS
    if (events := tuple(event for event in saga.consumed_by(group) if event != "order.updated"))
}
"""Consumer group -> types of the events that it consumes. No step of the saga waits for a reader of order.updated."""

SQL = load("orderstream.order_service")
log = logs.get()


class Offsets(Struct, frozen=True):
    """The end of each partition, and the lowest offset that one of its readers has committed."""

    ends: dict[TopicAndPartition, int]
    taken: dict[TopicAndPartition, int]


class Consumed:
    """Notes the ends of the topics at several times, and finds the latest time that all readers have passed."""

    def __init__(self, ask: Callable[[], Offsets], clock: Callable[[], float] = time.monotonic) -> None:
        """`ask` returns the offsets. It raises KafkaException if Kafka does not answer in time."""
        self._ask = ask
        self._clock = clock
        self._asked_at: float | None = None
        self._points: list[tuple[datetime, dict[TopicAndPartition, int]]] = []
        self._spacing = timedelta(0)
        self.until: datetime | None = None
        """The time before which all events are consumed; None while it is unknown."""

    @property
    def is_fresh(self) -> bool:
        """Whether the last answer of Kafka is younger than ASK_SECONDS."""
        return self._asked_at is not None and self._clock() - self._asked_at < ASK_SECONDS

    def refresh(self, connection: Connection) -> None:
        """Ask Kafka again. If Kafka does not answer, `until` is None."""
        row = connection.execute(SQL["published_until"]).fetchone()
        assert row is not None
        (published_until,) = row
        try:
            offsets = self._ask()
        except (KafkaException, KafkaRefusedError) as error:
            log.warning("backlog_unknown", detail=str(error)[:300])
            self.until = None
        else:
            self.note(published_until, offsets)
        self._asked_at = self._clock()

    def note(self, published_until: datetime, offsets: Offsets) -> None:
        """Note the ends of the topics. They are after every event that is older than `published_until`."""
        self._points.append((published_until, offsets.ends))
        passed = [number for number, (_, ends) in enumerate(self._points) if _has_passed(offsets, ends)]
        if passed:
            self.until = max(at for at, _ in self._points[: passed[-1] + 1])
            del self._points[: passed[-1]]
        self._thin_out()

    def _thin_out(self) -> None:
        """Drop points, so that at most POINTS_MAX are kept. Keep the oldest and the newest."""
        if len(self._points) < POINTS_MAX // 2:
            self._spacing = timedelta(0)
        if len(self._points) > POINTS_MAX:
            self._spacing = 2 * (self._points[-1][0] - self._points[0][0]) / POINTS_MAX
            del self._points[1:-1:2]
        elif len(self._points) > 2 and self._points[-2][0] - self._points[-3][0] < self._spacing:
            del self._points[-2]


def _has_passed(offsets: Offsets, ends: Mapping[TopicAndPartition, int]) -> bool:
    """Say whether all readers have passed these ends. If a topic was created again, its new end counts."""
    return all(offsets.taken[partition] >= min(ends.get(partition, 0), end) for partition, end in offsets.ends.items())


class KafkaOffsets:
    """Asks Kafka for offsets, with one client for each group, created on first use. A context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[str, Consumer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the clients. A client that is still open when Python exits may end the process with a signal."""
        for client in self._clients.values():
            client.close()

    def ask(self) -> Offsets:
        """Return the ends of the topics and the offsets of the groups. Raises KafkaException, KafkaRefusedError."""
        deadline = time.monotonic() + ANSWER_SECONDS
        ends: dict[TopicAndPartition, int] = {}
        taken: dict[TopicAndPartition, int] = {}
        for group, event_types in READERS.items():
            if group not in self._clients:
                self._clients[group] = consumer(self._settings, group)
            topics = [self._settings.kafka_topic_prefix + topic_of(event_type) for event_type in event_types]
            for partition, offsets in group_offsets(self._clients[group], topics, deadline).items():
                ends[partition] = min(ends.get(partition, offsets.end), offsets.end)
                taken[partition] = min(taken.get(partition, offsets.next), offsets.next)
        return Offsets(ends, taken)
