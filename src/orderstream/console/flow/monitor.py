"""The monitor: asks Kafka, Postgres, Valkey and the processes, each in a thread of its own, and keeps 5 minutes."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from orderstream.console.flow.history import History
from orderstream.console.flow.kafka_reader import OUR_TOPICS, KafkaReader, KafkaSample
from orderstream.console.flow.postgres_reader import PostgresReader, PostgresSample
from orderstream.console.flow.processes_reader import ProcessesReader
from orderstream.console.flow.snapshot import (
    ACCEPTED,
    DEAD_LETTERS,
    LAG,
    OUTBOX_AGE,
    SETTLED,
    Snapshot,
    end_of,
    lag_of,
    letters_of,
)
from orderstream.console.flow.source import Audience, Source
from orderstream.console.flow.targets import Targets
from orderstream.console.flow.valkey_reader import ValkeyReader
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.kafka.topics import dead_letter_topic
from orderstream.settings import Settings

ORDERS_SECONDS = 1.0
"""How often Postgres is read while someone looks, so that a new order appears at once."""
STOP_SECONDS = 1.0
"""How long the end of the console waits for the threads. A thread that hangs ends with the process."""


class Monitor:
    """Runs from `start` to `stop`. Any thread may call `look` and `snapshot`, which never wait."""

    def __init__(
        self,
        settings: Settings,
        targets: Targets,
        services: tuple[str, ...],
        *,
        local: bool,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._services = services
        self._local = local
        self._outbox_limit = settings.outbox_limit
        self._started_at = clock()
        self._history = History()
        self._open_before: int | None = None
        self._measured_at = float("-inf")
        self._audience = Audience(clock)
        url = settings.console_postgres_url or settings.postgres_url
        self._kafka = Source(
            "kafka", lambda: KafkaReader(settings), self._audience, received=self._note_kafka, clock=clock
        )
        self._postgres = Source(
            "postgres",
            lambda: PostgresReader(url),
            self._audience,
            received=self._note_postgres,
            clock=clock,
            watched_seconds=ORDERS_SECONDS,
        )
        self._valkey = Source("valkey", lambda: ValkeyReader(settings.redis_url), self._audience, clock=clock)
        self._processes = Source("processes", lambda: ProcessesReader(targets), self._audience, clock=clock)
        self._sources: tuple[Source[Any], ...] = (self._kafka, self._postgres, self._valkey, self._processes)

    def start(self) -> None:
        """Begin to sample."""
        for source in self._sources:
            source.start()

    def stop(self) -> None:
        """End the threads. Takes STOP_SECONDS at most."""
        for source in self._sources:
            source.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for source in self._sources:
            source.join(max(0.0, deadline - time.monotonic()))

    def look(self) -> Snapshot:
        """Return a snapshot for someone who looks. For the next 30 s, the samples come every 2 s."""
        self._audience.look()
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """Return the state of the monitor now."""
        now = self._clock()
        return Snapshot(
            now=now,
            at=self._wall_clock(),
            started_at=self._started_at,
            kafka=self._kafka.reading,
            postgres=self._postgres.reading,
            valkey=self._valkey.reading,
            processes=self._processes.reading,
            history=self._history.points(now),
            services=self._services,
            local=self._local,
            outbox_limit=self._outbox_limit,
        )

    def kafka_is_silent(self) -> bool:
        """Whether Kafka does not answer now."""
        return self._kafka.reading.silent_from(self._clock()) is not None

    def _note_kafka(self, sample: KafkaSample, _at: float) -> None:
        if sample.measured_at <= self._measured_at:
            return
        self._measured_at = at = sample.measured_at
        ends = dict.fromkeys(OUR_TOPICS, 0)
        for (topic, _), end in sample.ends.items():
            ends[topic] += end
        for topic, end in ends.items():
            self._history.add(end_of(topic), at, end)
        lags = {group: sum(sample.lag(group).values()) for group in CONSUMER_GROUPS}
        for group, lag in lags.items():
            self._history.add(lag_of(group), at, lag)
            self._history.add(letters_of(group), at, ends[dead_letter_topic(group)])
        self._history.add(LAG, at, sum(lags.values()))
        self._history.add(DEAD_LETTERS, at, sum(ends[dead_letter_topic(group)] for group in CONSUMER_GROUPS))

    def _note_postgres(self, sample: PostgresSample, at: float) -> None:
        self._history.add(OUTBOX_AGE, at, sample.under_way.outbox.oldest_seconds or 0.0)
        pace, before = sample.pace, self._open_before
        self._open_before = pace.open_before
        if pace.seconds is None or pace.accepted is None:
            return
        self._history.add(ACCEPTED, at, pace.accepted / pace.seconds)
        if before is not None and pace.open_before is not None:
            # An order that was open or accepted, and is not open any more, has settled.
            self._history.add(SETTLED, at, max(0, before + pace.accepted - pace.open_before) / pace.seconds)
