"""Until when everything that was decided has been consumed: an order that waits in Kafka is not stalled (P5).

The watchdog notes, at a time of the database's clock, where the topics end. When every worker's committed offsets have
passed those ends, all events that were in Kafka by that time are consumed. Neither the clocks of Kafka nor those of the
services take part.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec
from msgspec import Struct

from orderstream.domain.events import topic
from orderstream.kafka.client import admin
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load
from orderstream.settings import Settings
from orderstream.telemetry import logs

ASK_SECONDS = 2.0
"""What Kafka said is used for so long."""
ANSWER_SECONDS = 1.0
"""Longest wait for all that Kafka is asked at once."""
POINTS_MAX = 64
"""Times that are remembered; beyond, every second one is forgotten, and those that follow are as far apart."""

READERS: dict[str, tuple[str, ...]] = {
    "payment-worker": ("order.created", "order.aborted"),
    "inventory-worker": ("payment.authorized", "order.aborted"),
    "order-service": (
        "payment.authorized",
        "payment.failed",
        "payment.voided",
        "inventory.reserved",
        "inventory.failed",
        "inventory.released",
    ),
}
"""Consumer group -> types of the events that it reads."""

SQL = load("orderstream.order_service")
log = logs.get()

Place = tuple[str, int]
"""Topic and partition."""


class Offsets(Struct, frozen=True):
    """Where each partition ends, and where the last of its readers has arrived."""

    ends: dict[Place, int]
    taken: dict[Place, int]


class Consumed:
    """Remembers where the topics ended at several times, and knows the latest time that all readers have passed."""

    def __init__(self, ask: Callable[[], Offsets], clock: Callable[[], float] = time.monotonic) -> None:
        """`ask` raises KafkaException when Kafka does not answer in time."""
        self._ask = ask
        self._clock = clock
        self._asked_at: float | None = None
        self._points: list[tuple[datetime, dict[Place, int]]] = []
        self._spacing = timedelta(0)
        self.until: datetime | None = None
        """What was decided before is consumed; None while that is not known."""

    @property
    def is_fresh(self) -> bool:
        """Whether Kafka was asked a moment ago."""
        return self._asked_at is not None and self._clock() - self._asked_at < ASK_SECONDS

    def refresh(self, connection: Connection) -> None:
        """Ask Kafka again. If it does not answer, nothing is known until it does."""
        row = connection.execute(SQL["published_until"]).fetchone()
        assert row is not None
        try:
            offsets = self._ask()
        except (KafkaException, TimeoutError) as error:
            log.warning("backlog_unknown", detail=str(error)[:300])
            self.until = None
        else:
            self.note(row[0], offsets)
        self._asked_at = self._clock()

    def note(self, published_until: datetime, offsets: Offsets) -> None:
        """Note where the topics end. All that was decided before `published_until` is before these ends."""
        self._points.append((published_until, offsets.ends))
        passed = [number for number, (_, ends) in enumerate(self._points) if _has_passed(offsets, ends)]
        if passed:
            self.until = max(at for at, _ in self._points[: passed[-1] + 1])
            del self._points[: passed[-1]]
        self._thin_out()

    def _thin_out(self) -> None:
        """Forget the newest point but one if it is too close to its neighbours for all to have room."""
        if len(self._points) < POINTS_MAX // 2:
            self._spacing = timedelta(0)
        if len(self._points) > POINTS_MAX:
            self._spacing = 2 * (self._points[-1][0] - self._points[0][0]) / POINTS_MAX
            del self._points[1:-1:2]
        elif len(self._points) > 2 and self._points[-2][0] - self._points[-3][0] < self._spacing:
            del self._points[-2]


def _has_passed(offsets: Offsets, ends: Mapping[Place, int]) -> bool:
    """Say whether all readers are behind these ends, or behind the end that a topic has since it was made again."""
    return all(offsets.taken[place] >= min(ends.get(place, 0), end) for place, end in offsets.ends.items())


def of_kafka(settings: Settings) -> Callable[[], Offsets]:
    """Return what asks Kafka: one client, made when it is needed first."""
    clients: list[AdminClient] = []

    def ask() -> Offsets:
        if not clients:
            clients.append(admin(settings, "watchdog"))
        return _offsets(clients[0], settings.kafka_topic_prefix)

    return ask


def _offsets(client: AdminClient, prefix: str) -> Offsets:
    deadline = time.monotonic() + ANSWER_SECONDS
    readers = {prefix + group: {prefix + topic(name) for name in names} for group, names in READERS.items()}
    known = client.list_topics(timeout=ANSWER_SECONDS).topics
    names = {name for topics in readers.values() for name in topics if name in known and known[name].error is None}
    places = [TopicPartition(name, number) for name in sorted(names) for number in known[name].partitions]
    if not places:
        return Offsets({}, {})
    last, first = (
        client.list_offsets(dict.fromkeys(places, which), request_timeout=ANSWER_SECONDS)
        for which in (OffsetSpec.latest(), OffsetSpec.earliest())  # type: ignore[no-untyped-call]
    )
    committed = [
        client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)], request_timeout=ANSWER_SECONDS)[group]
        for group in readers
    ]
    ends = {(place.topic, place.partition): _result(future, deadline).offset for place, future in last.items()}
    starts = {(place.topic, place.partition): _result(future, deadline).offset for place, future in first.items()}
    taken = dict(ends)
    for (_, topics), future in zip(readers.items(), committed, strict=True):
        offsets = {(one.topic, one.partition): one.offset for one in _result(future, deadline).topic_partitions}
        for place, end in ends.items():
            if place[0] in topics:
                offset = offsets.get(place, -1)
                taken[place] = min(taken[place], offset if starts[place] <= offset <= end else starts[place])
    return Offsets(ends, taken)


def _result(future: "Future[Any]", deadline: float) -> Any:
    return future.result(max(0.0, deadline - time.monotonic()))
