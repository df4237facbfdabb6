"""Fills the index of the dead letters from the `<service>.dlq.v1` topics (P9). Commits no offsets in Kafka.

Any number of tailers may run: the table `dead_letter_positions` says how far each partition is, and a letter that is in
the index already is left out. A tailer reads all the time while someone looks at the letters. Otherwise it reads what
has arrived every IDLE_SECONDS.
"""

import threading
import time
from collections.abc import Sequence

import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from orderstream.dead_letters.entries import Entry, columns, entry_of
from orderstream.dead_letters.reader import stored_letter
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.kafka.client import admin, consumer
from orderstream.kafka.errors import UNKNOWN_TOPIC, KafkaRefusedError
from orderstream.kafka.topics import dead_letter_topic
from orderstream.postgres.faults import is_fatal
from orderstream.postgres.session import Session
from orderstream.postgres.sql import load
from orderstream.settings import Settings
from orderstream.telemetry import logs

BATCH_LETTERS = 500
LETTERS_PER_SECOND = 5_000
"""Letters that one tailer adds. So a flood of letters leaves PostgreSQL to the orders."""
GATHER_SECONDS = 0.1
FIRST_GATHER_SECONDS = 1.0
"""For the first read after a pause: the consumer must ask Kafka first."""
IDLE_SECONDS = 10.0
LOOKED_SECONDS = 30.0
"""For this time after a look, the tailer reads all the time."""
TOPICS_SECONDS = 5.0
"""Between two checks whether a topic was created again."""
EXPIRY_SECONDS = 60.0
"""Between two removals of letters that Kafka no longer has."""
RETRY_SECONDS = 2.0
KAFKA_SECONDS = 5.0
"""Longest wait for one response of Kafka."""
INDEX_LOCK = 0x0DEAD1E7
"""Key of the advisory lock under which tailers write."""

SQL = load("orderstream.dead_letters", "index.sql")
log = logs.get()

Partition = tuple[str, int]
"""Service and number of a partition of its dead-letter topic."""


class Tailer:
    """Reads the dead-letter topics into the index, in one thread. `look` may be called by any thread."""

    def __init__(self, settings: Settings, postgres_url: str) -> None:
        self._settings = settings
        self._session = Session(postgres_url, "dead-letters")
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._looked = -LOOKED_SECONDS
        self._admin: AdminClient | None = None
        self._consumer: Consumer | None = None
        self._topics: dict[str, tuple[str, int]] = {}
        self._next: dict[Partition, int] = {}
        self._checked = self._expired = 0.0
        self.problem: str | None = None
        """Why the index is not up to date; None while it is."""

    def look(self) -> None:
        """Note that someone looks at the letters, so that new ones appear at once."""
        self._looked = time.monotonic()
        self._wake.set()

    def stop(self) -> None:
        """End `run` soon. Any thread may call this."""
        self._stop.set()
        self._wake.set()

    def run(self) -> None:
        """Fill the index until `stop`. After an error of Kafka or PostgreSQL, begin again after RETRY_SECONDS."""
        wait_seconds = FIRST_GATHER_SECONDS
        while not self._stop.is_set():
            try:
                wait_seconds = GATHER_SECONDS if self.read_available(wait_seconds) else self._rest()
            except (KafkaException, KafkaRefusedError, psycopg.Error) as error:
                self._failed(error)
                wait_seconds = FIRST_GATHER_SECONDS
        self.close()

    def read_available(self, wait_seconds: float = GATHER_SECONDS) -> int:
        """Read the letters that come within `wait_seconds`, at most BATCH_LETTERS, and return their number.

        Raises KafkaException, KafkaRefusedError and psycopg.Error.
        """
        if time.monotonic() - self._checked >= TOPICS_SECONDS or self._consumer is None:
            self._check_topics()
            self._checked = time.monotonic()
        began = time.monotonic()
        entries, read = self._gather(wait_seconds)
        if read:
            self._store(entries, read)
            self._stop.wait(max(0.0, len(entries) / LETTERS_PER_SECOND - (time.monotonic() - began)))
        elif time.monotonic() - self._expired >= EXPIRY_SECONDS:
            self._remove_expired()
            self._expired = time.monotonic()
        self.problem = None
        return len(entries)

    def catch_up(self, limit_seconds: float) -> bool:
        """Read what Kafka has now, and return whether that was done in time. Raises the errors of `read_available`."""
        self._check_topics()
        self._checked = time.monotonic()
        assert self._consumer is not None
        prefix = self._settings.kafka_topic_prefix
        ends = {}
        for service, number in self._next:
            topic = TopicPartition(prefix + dead_letter_topic(service), number)
            first, end = self._consumer.get_watermark_offsets(topic, timeout=KAFKA_SECONDS)
            if first < end:
                ends[service, number] = end
        deadline = time.monotonic() + limit_seconds
        while any(self._next.get(partition, end) < end for partition, end in ends.items()):
            if time.monotonic() > deadline:
                return False
            self.read_available()
        return True

    def close(self) -> None:
        """Close the connections to Kafka and PostgreSQL."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._admin = None
        self._session.close()

    def _rest(self) -> float:
        """Wait for the next read, and return how long it should wait for a letter.

        If no one looks, the consumer pauses, so that it does not ask Kafka.
        """
        if time.monotonic() - self._looked < LOOKED_SECONDS:
            return GATHER_SECONDS
        assigned = self._consumer.assignment() if self._consumer is not None else []
        if self._consumer is not None and assigned:
            self._consumer.pause(assigned)
        self._wake.wait(IDLE_SECONDS)
        self._wake.clear()
        if self._consumer is not None and assigned:
            self._consumer.resume(assigned)
        return FIRST_GATHER_SECONDS

    def _failed(self, error: Exception) -> None:
        self.problem = f"{type(error).__name__}: {str(error).strip()[:500]}"
        log.warning("dead_letters_not_read", error=self.problem, is_fatal=is_fatal(error))
        self.close()
        self._stop.wait(RETRY_SECONDS)

    def _check_topics(self) -> None:
        """Find the topics, begin again with those that were created again, and assign what is new."""
        if self._admin is None:
            self._admin = admin(self._settings, "dead-letters")
        found = _describe(self._admin, self._settings.kafka_topic_prefix)
        known = self._stored_positions()
        for service, (topic_id, partitions) in found.items():
            stored = {number: known[service, number] for number in range(partitions) if (service, number) in known}
            if any(of_topic != topic_id for of_topic, _ in stored.values()):
                self._restart(service, topic_id)
            if len(stored) < partitions:
                with self._session.use() as connection:
                    values = {"service": service, "topic_id": topic_id, "partitions": list(range(partitions))}
                    connection.execute(SQL["begin_partitions"], values)
        if found != self._topics or self._consumer is None:
            self._assign(found)

    def _stored_positions(self) -> dict[Partition, tuple[str, int]]:
        with self._session.use() as connection:
            rows = connection.execute(SQL["positions"]).fetchall()
        return {(service, number): (topic_id, next_offset) for service, number, topic_id, next_offset in rows}

    def _restart(self, service: str, topic_id: str) -> None:
        """Forget the letters of a topic that was deleted. The history of what was done with them stays."""
        with self._session.use() as connection, connection.transaction():
            connection.execute(SQL["lock_index"], {"key": INDEX_LOCK})
            changed = connection.execute(SQL["restart_partitions"], {"service": service, "topic_id": topic_id}).rowcount
            forgotten = 0
            while changed and (deleted := connection.execute(SQL["forget_letters"], {"service": service}).rowcount):
                forgotten += deleted
        if changed:
            log.warning("dead_letter_topic_created_again", service=service, forgotten=forgotten)

    def _assign(self, found: dict[str, tuple[str, int]]) -> None:
        """Read every partition from where the index ends. Another tailer may have moved it."""
        if self._consumer is None:
            self._consumer = consumer(self._settings, "dead-letters")
        known = self._stored_positions()
        self._next = {
            partition: next_offset
            for partition, (topic_id, next_offset) in known.items()
            if partition[0] in found and topic_id == found[partition[0]][0]
        }
        prefix = self._settings.kafka_topic_prefix
        self._consumer.assign(
            [
                TopicPartition(prefix + dead_letter_topic(service), number, next_offset)
                for (service, number), next_offset in self._next.items()
            ]
        )
        self._topics = found

    def _gather(self, wait_seconds: float) -> tuple[list[Entry], dict[Partition, int]]:
        """Poll up to BATCH_LETTERS letters, one at a time, and keep only their rows, because a letter may be large."""
        assert self._consumer is not None
        entries: list[Entry] = []
        read: dict[Partition, int] = {}
        suffix = len(dead_letter_topic(""))
        deadline = time.monotonic() + wait_seconds
        while len(entries) < BATCH_LETTERS and (left := deadline - time.monotonic()) > 0:
            message = self._consumer.poll(left)
            if message is None:
                break
            if (error := message.error()) is not None:
                if error.code() not in (*UNKNOWN_TOPIC, KafkaError._PARTITION_EOF):
                    raise KafkaException(error)
                self._checked = 0.0
                continue
            topic = (message.topic() or "").removeprefix(self._settings.kafka_topic_prefix)
            letter = stored_letter(topic[:-suffix], message)
            if letter.group not in self._topics:
                continue
            if not entries:
                deadline = min(deadline, time.monotonic() + GATHER_SECONDS)
            entries.append(entry_of(letter, self._topics[letter.group][0]))
            read[letter.group, letter.partition] = letter.offset + 1
        return entries, read

    def _store(self, entries: Sequence[Entry], read: dict[Partition, int]) -> None:
        partitions = sorted(read)
        moved = {
            "services": [service for service, _ in partitions],
            "partitions": [number for _, number in partitions],
            "topic_ids": [self._topics[service][0] for service, _ in partitions],
            "nexts": [read[partition] for partition in partitions],
        }
        with self._session.use() as connection, connection.transaction():
            connection.execute(SQL["lock_index"], {"key": INDEX_LOCK})
            connection.execute(SQL["add_letters"], columns(entries))
            connection.execute(SQL["advance"], moved)
        self._next |= read

    def _remove_expired(self) -> None:
        """Remove the letters below the first offset of each partition. A partition without a leader waits."""
        assert self._consumer is not None
        prefix = self._settings.kafka_topic_prefix
        for service, number in self._next:
            topic = TopicPartition(prefix + dead_letter_topic(service), number)
            try:
                first, _ = self._consumer.get_watermark_offsets(topic, timeout=KAFKA_SECONDS)
            except KafkaException as error:
                log.warning("dead_letter_offsets_unknown", topic=topic.topic, error=str(error)[:500])
                return
            values = {"service": service, "partition": number, "first": first}
            with self._session.use() as connection:
                while connection.execute(SQL["remove_expired"], values).rowcount and not self._stop.is_set():
                    pass


def _describe(client: AdminClient, prefix: str) -> dict[str, tuple[str, int]]:
    """Return the topic id and the number of partitions of each service whose dead-letter topic exists.

    Raises KafkaException if Kafka does not answer in time.
    """
    names = {prefix + dead_letter_topic(service): service for service in CONSUMER_GROUPS}
    found = {}
    client.poll(0)  # Delivers pending errors and log lines, which would pile up.
    for name, future in client.describe_topics(TopicCollection(list(names)), request_timeout=KAFKA_SECONDS).items():
        try:
            described = future.result(2 * KAFKA_SECONDS)
        except TimeoutError as error:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from error
        except KafkaException as error:
            if error.args[0].code() in UNKNOWN_TOPIC:
                continue
            raise
        found[names[name]] = (str(described.topic_id), len(described.partitions))
    return found
