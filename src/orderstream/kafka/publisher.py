"""Publishes records and waits for Kafka's acknowledgement of every record (P1, P5).

If Kafka refuses a batch, the publisher finds the records at fault by sending smaller batches.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from threading import Event as StopSignal

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from orderstream.kafka.batch_sizes import BATCH_BYTES, BatchSizes
from orderstream.kafka.client import DELIVERY_TIMEOUT_SECONDS, producer
from orderstream.kafka.errors import BATCH_REFUSED, REFUSED, PublishError, is_fatal
from orderstream.kafka.publication import Publication
from orderstream.kafka.stuck_topics import StuckTopics
from orderstream.settings import Settings

FLUSH_TIMEOUT_SECONDS = DELIVERY_TIMEOUT_SECONDS + 5
FLUSH_SLICE_SECONDS = 0.2
RESEND_SECONDS = 5
"""Time for all resends of refused batches in one publish. Then the caller learns the result and retries the rest."""
ENQUEUE_ATTEMPTS = 10
TOPIC_CHECK_SECONDS = 10


class Publisher:
    """An idempotent producer with acks=all, for one thread. Topics are named without KAFKA_TOPIC_PREFIX."""

    def __init__(self, settings: Settings, name: str, stop: StopSignal | None = None) -> None:
        self._stop = stop or StopSignal()
        self._settings = settings
        self._name = name
        # By the index of their batch size. Those of smaller batches are made when they are needed.
        self._producers = {0: producer(settings, name)}
        self._sizes = BatchSizes(time.monotonic)
        self._stuck = StuckTopics(time.monotonic)

    def publish(self, records: Sequence[Publication]) -> None:
        """Send the records and wait until Kafka has acknowledged all of them: 40 s at most, and only until `stop`.

        Raises PublishError if a record was not acknowledged. Some of the other records may then be in their topics:
        publishing is at least once, and readers identify events by their id. If Kafka permanently refuses a batch, its
        records are sent again in smaller batches, in the last step one by one, to find the records at fault.
        """
        if not records:
            return
        refused = {
            index: f"topic {record.topic} acknowledges nothing while other topics do"
            for index, record in enumerate(records)
            if self._stuck.is_suspended(record.topic)
        }
        failures = self._deliver(records, [index for index in range(len(records)) if index not in refused])
        self._stuck.note(records, failures, refused)
        refused |= {index: _reason(error) for index, error in failures.items() if error.code() in REFUSED}
        if failures or refused:
            raise self._failure(failures, refused)

    def absent(self, topics: Collection[str]) -> set[str]:
        """Return the topics that do not exist in Kafka. Creates none. Raises PublishError if Kafka does not answer."""
        if not topics:
            return set()
        try:
            known = self._producers[0].list_topics(timeout=TOPIC_CHECK_SECONDS).topics
        except KafkaException as error:
            raise PublishError(error.args[0], len(topics)) from error
        return {topic for topic in topics if self._settings.kafka_topic_prefix + topic not in known}

    def _deliver(self, records: Sequence[Publication], indexes: Collection[int]) -> dict[int, KafkaError]:
        """Send the records at `indexes`, in smaller batches while Kafka refuses one. Return the errors by index."""
        deadline = time.monotonic() + FLUSH_TIMEOUT_SECONDS
        failures: dict[int, KafkaError] = {}
        suspects: list[int] = []
        waiting = self._sizes.sort(records, indexes)
        for size, first_sent in enumerate(waiting):
            if not (sent := sorted([*suspects, *first_sent])):
                continue
            outcome = self._send(size, records, sent, deadline)
            self._sizes.note(size, {records[index].topic for index in suspects if index not in outcome})
            blamed = [index for index, error in outcome.items() if error.code() in BATCH_REFUSED]
            suspects = _with_followers(records, blamed, sent) if size < len(BATCH_BYTES) - 1 else []
            if suspects:
                deadline = min(deadline, time.monotonic() + RESEND_SECONDS)
            failures |= {index: error for index, error in outcome.items() if index not in suspects}
        return failures

    def _failure(self, failures: Mapping[int, KafkaError], refused: Mapping[int, str]) -> PublishError:
        """Return the error for the failed records. Replaces the producers after a fatal error."""
        waiting = {index: error for index, error in failures.items() if index not in refused}
        if any(is_fatal(error) for error in waiting.values()):
            self._producers = {0: producer(self._settings, self._name)}
        worst = min(waiting.values() or failures.values(), key=lambda error: not is_fatal(error), default=None)
        total = len(waiting) + len(refused)
        return PublishError(worst or KafkaError(KafkaError._TIMED_OUT), total, refused, frozenset(waiting))

    def _producer(self, size: int) -> Producer:
        """Return the producer for this batch size. With the smallest size, each record is sent alone, one at a time."""
        if size not in self._producers:
            smaller = {"batch.size": str(BATCH_BYTES[size])}
            if size == len(BATCH_BYTES) - 1:
                smaller = {"batch.num.messages": "1", "max.in.flight.requests.per.connection": "1", "linger.ms": "0"}
            self._producers[size] = producer(self._settings, self._name, smaller)
        return self._producers[size]

    def _send(
        self, size: int, records: Sequence[Publication], indexes: Collection[int], deadline: float
    ) -> dict[int, KafkaError]:
        """Send the records at `indexes`, and return the error of each record that was not acknowledged."""
        sender, reports = self._producer(size), _DeliveryReports(indexes)
        if time.monotonic() >= deadline:
            return reports.failures()
        for index in indexes:
            self._enqueue(sender, records[index], partial(reports, index))
        left = 0
        try:
            while left := sender.flush(FLUSH_SLICE_SECONDS):
                if time.monotonic() >= deadline or self._stop.is_set():
                    break
        except KafkaException as error:
            reports.interrupted = error.args[0]
        if left and size:
            # The producer would send the records that it still holds beside their retry.
            del self._producers[size]
        return reports.failures()

    def _enqueue(self, sender: Producer, record: Publication, report: Callable[..., None]) -> None:
        topic = self._settings.kafka_topic_prefix + record.topic
        for _ in range(ENQUEUE_ATTEMPTS):
            try:
                sender.produce(topic, record.value, record.key, on_delivery=report, headers=record.headers)
            except BufferError:
                sender.flush(1)
            except KafkaException as error:
                report(error.args[0], None)
                return
            else:
                return
        report(KafkaError(KafkaError._QUEUE_FULL), None)


def _with_followers(records: Sequence[Publication], blamed: Collection[int], sent: Sequence[int]) -> list[int]:
    """Return the blamed records and all records that were sent after one with the same key, to keep their order."""
    if not blamed:
        return []
    held: set[tuple[str, str | bytes | None]] = set()
    found = []
    for index in sent:
        topic, key = records[index].topic, records[index].key
        if index in blamed or (key is not None and (topic, key) in held):
            held.add((topic, key))
            found.append(index)
    return found


def _reason(error: KafkaError) -> str:
    return f"{error.name()}: {error.str()}"


class _DeliveryReports:
    """Collects the delivery reports of one publish. A record without a report counts as failed."""

    def __init__(self, indexes: Collection[int]) -> None:
        self._waiting = set(indexes)
        self._failures: dict[int, KafkaError] = {}
        self._lock = threading.Lock()
        self.interrupted: KafkaError | None = None

    def __call__(self, index: int, error: KafkaError | None, _message: Message | None) -> None:
        if error is None:
            self._waiting.discard(index)
        else:
            with self._lock:
                self._failures[index] = error

    def failures(self) -> dict[int, KafkaError]:
        """Return the error of each record that was not acknowledged."""
        if not self._waiting:
            return {}
        with self._lock:
            unknown = self.interrupted or KafkaError(KafkaError._TIMED_OUT)
            return {index: self._failures.get(index, unknown) for index in sorted(self._waiting)}
