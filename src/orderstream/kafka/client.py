"""Kafka clients with the settings that the promises rest on, and the one way to publish: all, or an error."""

import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from threading import Event as StopSignal
from typing import Any, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from msgspec import Struct

from orderstream.kafka.batch_sizes import BATCH_BYTES, BatchSizes
from orderstream.settings import Settings, SettingsError

DELIVERY_TIMEOUT_SECONDS = 30
FLUSH_TIMEOUT_SECONDS = DELIVERY_TIMEOUT_SECONDS + 5
RESEND_SECONDS = 5
"""For all resends of what Kafka refused: then the caller learns what was acknowledged, and tries the others later."""
FLUSH_SLICE_SECONDS = 0.2
MAX_MESSAGE_BYTES = 2_097_152
"""Largest record a producer sends: a dead letter carries the original and some more."""

LONELY_FAILURES_MAX = 3
"""Publishes in a row in which a topic acknowledged nothing while another one did: then its records are set aside."""
LONELY_EVIDENCE_SECONDS = 60
"""An acknowledgement is evidence for so long. A topic that is set aside is tried again after as long."""
TOPIC_CHECK_SECONDS = 10

BATCH_REFUSED = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.POLICY_VIOLATION,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        KafkaError._INVALID_DIFFERENT_RECORD,
        KafkaError._INVALID_ARG,
    }
)
"""Kafka refuses a batch of one partition for good, and one record in it may be the cause."""
TOPIC_REFUSED = frozenset(
    {
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.INVALID_REQUIRED_ACKS,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
        KafkaError.INVALID_CONFIG,
    }
)
"""Kafka refuses every record of a topic for good."""
REFUSED = BATCH_REFUSED | TOPIC_REFUSED
UNKNOWN_TOPIC = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)
TOPIC_MAY_BE_GONE = (*UNKNOWN_TOPIC, KafkaError._MSG_TIMED_OUT)
"""A producer that knew a topic waits its time out before it learns that the topic was deleted."""
FENCED = (
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._STATE,
)
"""A commit refused with one of these: the partitions belong to somebody else by now."""

_QUOTED = re.compile(r'(?<!property )"(?![a-z]+(?:\.[a-z]+)+")[^"]*"')
"""What librdkafka repeats of the options in its complaint, but for what is surely the name of one."""

C = TypeVar("C")
log = structlog.get_logger()


class Publication(Struct, frozen=True):
    """One record to publish."""

    topic: str
    key: str | bytes | None
    value: bytes | str | None
    headers: list[tuple[str, str | bytes | None]]


class KafkaRefusedError(Exception):
    """Kafka does not take us, or we not Kafka: a wrong password, a certificate that is not trusted. No retry helps."""


class PublishError(Exception):
    """Not every record was acknowledged; `code` is librdkafka's of the first failure.

    `refused` has the records that Kafka refuses for good, by their index, with the reason. `unacknowledged` has the
    indexes of those that a retry may bring to their topic; None: any of the records may be one.
    """

    def __init__(
        self,
        error: KafkaError,
        failed: int,
        refused: Mapping[int, str] | None = None,
        unacknowledged: Collection[int] | None = None,
    ) -> None:
        super().__init__(f"{failed} records were not acknowledged: {error.str()}")
        self.code = error.code()
        self.fatal = error.fatal() or self.code == KafkaError._FATAL
        self.refused = refused or {}
        self.unacknowledged = unacknowledged

    @property
    def poisonous(self) -> bool:
        """Say whether every failing record is refused for good, so that a retry of the same records cannot succeed."""
        return bool(self.refused) and self.unacknowledged is not None and not self.unacknowledged


def _common(settings: Settings, name: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.kafka_brokers,
        "client.id": name,
        "topic.metadata.refresh.interval.ms": 5_000,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "socket.keepalive.enable": True,
        "logger": _Bridge(name),
        "error_cb": _note_error,
    }


def _note_error(error: KafkaError) -> None:
    """What librdkafka says of its connections, from within `poll` or `flush`, which a raised exception ends.

    Everything but a refusal it tries again by itself. Of TLS only OpenSSL's own verdicts are refusals: a broker may
    also die in the middle of a handshake.
    """
    refused_by_tls = error.code() == KafkaError._SSL and "SSL routines" in error.str()
    if refused_by_tls or error.code() == KafkaError._AUTHENTICATION:
        raise KafkaRefusedError(error.str())
    log.warning("kafka_unreachable", code=error.name(), detail=error.str()[:500])


class _Bridge:
    """Takes librdkafka's log lines to ours; it wants an object with `log` and no more."""

    def __init__(self, name: str) -> None:
        self._log = log.bind(client=name)

    def log(self, level: int, _format: str, *arguments: object) -> None:
        del level
        self._log.debug("kafka_client", detail=" ".join(str(one) for one in arguments)[:500])


def _make(kind: Callable[[dict[str, Any]], C], ours: dict[str, Any], settings: Settings) -> C:
    """Make a client of our options and the given ones, which go before ours. Raises SettingsError for wrong ones."""
    try:
        return kind(ours | settings.kafka_options)
    except (KafkaException, TypeError, AttributeError) as error:
        refused = not isinstance(error, KafkaException) or error.args[0].code() == KafkaError._INVALID_ARG
        if not settings.kafka_options or not refused:
            raise
        why = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise SettingsError([f"KAFKA_OPTIONS: librdkafka says: {_QUOTED.sub('…', why).strip()}"]) from error


def check_options(settings: Settings) -> None:
    """Raise SettingsError if librdkafka would refuse KAFKA_OPTIONS. Speaks to nobody."""
    Publisher(settings, "check")
    consumer(settings, "check").close()


def admin(settings: Settings, name: str) -> AdminClient:
    """Return an AdminClient; keep it in a variable as long as a result of it is awaited.

    Raises SettingsError, as whatever makes a client does, when librdkafka refuses KAFKA_OPTIONS.
    """
    return _make(AdminClient, _common(settings, name), settings)


def consumer(settings: Settings, group: str) -> Consumer:
    """Return a consumer of `group` that commits nothing by itself and starts a new group at the beginning.

    The group's name in Kafka begins with KAFKA_TOPIC_PREFIX. Topics are given to the consumer as they are in Kafka.
    """
    return _make(
        Consumer,
        _common(settings, group)
        | {
            "group.id": settings.kafka_topic_prefix + group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            # A transaction that anyone leaves open would hold up all records behind it.
            "isolation.level": "read_uncommitted",
            "partition.assignment.strategy": "range",
            "group.protocol": "classic",
            "session.timeout.ms": 10_000,
            "heartbeat.interval.ms": 2_000,
            "max.poll.interval.ms": 180_000,
            "fetch.wait.max.ms": 100,
            "fetch.queue.backoff.ms": 5,
            "queued.min.messages": 1_000,
            "queued.max.messages.kbytes": 8_192,
            "enable.partition.eof": False,
            "allow.auto.create.topics": False,
        },
        settings,
    )


class Publisher:
    """An idempotent producer with acks=all. Used by one thread. Topics are named without KAFKA_TOPIC_PREFIX."""

    def __init__(self, settings: Settings, name: str, stop: StopSignal | None = None) -> None:
        self._stop = stop or StopSignal()
        self._settings = settings
        self._config = _common(settings, name) | {
            "acks": "all",
            "enable.idempotence": True,
            "max.in.flight.requests.per.connection": 5,
            "delivery.timeout.ms": DELIVERY_TIMEOUT_SECONDS * 1_000,
            "topic.metadata.propagation.max.ms": 5_000,
            "linger.ms": 1,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "queue.buffering.max.messages": 20_000,
            "queue.buffering.max.kbytes": 65_536,
            "partitioner": "murmur2_random",
        }
        # By the index of their batch size; those of smaller batches are made when they are needed.
        self._producers = {0: _make(Producer, self._config, settings)}
        self._sizes = BatchSizes(time.monotonic)
        self._lonely = LonelyTopics(time.monotonic)

    def publish(self, records: Sequence[Publication]) -> None:
        """Send the records and wait until Kafka has acknowledged every one: 40 s at most, and only until `stop`.

        Raises PublishError when one was not. Some of the others may then be in their topics: publishing is at least
        once, and readers know events by their id. If Kafka refuses a batch for good, its records are sent again in
        smaller batches, the last time alone, to find out which of them are at fault.
        """
        if not records:
            return
        refused = {
            index: f"topic {record.topic} acknowledges nothing while other topics do"
            for index, record in enumerate(records)
            if self._lonely.is_set_aside(record.topic)
        }
        failures = self._deliver(records, [index for index in range(len(records)) if index not in refused])
        self._lonely.note(records, failures, refused)
        refused |= {index: _reason(error) for index, error in failures.items() if error.code() in REFUSED}
        if failures or refused:
            raise self._failure(failures, refused)

    def _deliver(self, records: Sequence[Publication], indexes: Collection[int]) -> dict[int, KafkaError]:
        """Send the records at `indexes`, in smaller batches as long as Kafka refuses any; return why each failed."""
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

    def absent(self, topics: Collection[str]) -> set[str]:
        """Return those of the topics that Kafka does not have. Creates none. Raises PublishError without an answer."""
        if not topics:
            return set()
        try:
            known = self._producers[0].list_topics(timeout=TOPIC_CHECK_SECONDS).topics
        except KafkaException as error:
            raise PublishError(error.args[0], len(topics)) from error
        return {topic for topic in topics if self._settings.kafka_topic_prefix + topic not in known}

    def _failure(self, failures: Mapping[int, KafkaError], refused: Mapping[int, str]) -> PublishError:
        """Return the error for what was not acknowledged, and replace a producer that failed for good."""
        waiting = {index: error for index, error in failures.items() if index not in refused}
        if any(_is_fatal(error) for error in waiting.values()):
            self._producers = {0: _make(Producer, self._config, self._settings)}
        worst = min(waiting.values() or failures.values(), key=lambda error: not _is_fatal(error), default=None)
        total = len(waiting) + len(refused)
        return PublishError(worst or KafkaError(KafkaError._TIMED_OUT), total, refused, frozenset(waiting))

    def _producer(self, size: int) -> Producer:
        """Return the producer of batches of this size. In the smallest each record is alone, and one is in flight."""
        if size not in self._producers:
            smaller = {"batch.size": str(BATCH_BYTES[size])}
            if size == len(BATCH_BYTES) - 1:
                smaller = {"batch.num.messages": "1", "max.in.flight.requests.per.connection": "1", "linger.ms": "0"}
            options = self._settings.kafka_options | smaller
            changed = self._settings.model_copy(update={"kafka_options": options})
            self._producers[size] = _make(Producer, self._config, changed)
        return self._producers[size]

    def _send(
        self, size: int, records: Sequence[Publication], indexes: Collection[int], deadline: float
    ) -> dict[int, KafkaError]:
        """Send the records at `indexes`, and return why each that was not acknowledged was not."""
        producer, report = self._producer(size), _Report(indexes)
        if time.monotonic() >= deadline:
            return report.failures()
        for index in indexes:
            self._enqueue(producer, records[index], partial(report, index))
        left = 0
        try:
            while left := producer.flush(FLUSH_SLICE_SECONDS):
                if time.monotonic() >= deadline or self._stop.is_set():
                    break
        except KafkaException as error:
            report.interrupted = error.args[0]
        if left and size:
            # What it still holds would be sent beside its repetition.
            del self._producers[size]
        return report.failures()

    def _enqueue(self, producer: Producer, record: Publication, report: Callable[..., None]) -> None:
        topic = self._settings.kafka_topic_prefix + record.topic
        for _ in range(10):
            try:
                producer.produce(topic, record.value, record.key, on_delivery=report, headers=record.headers)
            except BufferError:
                producer.flush(1)
            except KafkaException as error:
                report(error.args[0], None)
                return
            else:
                return
        report(KafkaError(KafkaError._QUEUE_FULL), None)


def _is_fatal(error: KafkaError) -> bool:
    return error.fatal() or error.code() == KafkaError._FATAL


def _with_followers(records: Sequence[Publication], blamed: Collection[int], sent: Sequence[int]) -> list[int]:
    """Return those that were blamed, and what was sent behind one with the same key: it must stay behind."""
    if not blamed:
        return []
    held: set[tuple[str, str | bytes | None]] = set()
    found = []
    for index in sent:
        place = records[index].topic, records[index].key
        if index in blamed or (place in held and place[1] is not None):
            held.add(place)
            found.append(index)
    return found


def _reason(error: KafkaError) -> str:
    return f"{error.name()}: {error.str()}"


class _Report:
    """Collects the delivery reports of one publish; a record without one is a failure too."""

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
        """Return why each record that was not acknowledged was not."""
        if not self._waiting:
            return {}
        with self._lock:
            unknown = self.interrupted or KafkaError(KafkaError._TIMED_OUT)
            return {index: self._failures.get(index, unknown) for index in sorted(self._waiting)}


class LonelyTopics:
    """Notices a topic that acknowledges nothing while other topics do, such as one with too few replicas.

    Its records would hold up all others by the delivery timeout, without end. So they count as refused, and one publish
    tries the topic again after LONELY_EVIDENCE_SECONDS.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._acknowledged: dict[str, float] = {}
        self._failures: dict[str, list[float]] = {}
        self._set_aside_until: dict[str, float] = {}

    def is_set_aside(self, topic: str) -> bool:
        """Say whether records of the topic need not be tried now."""
        return bool(self._set_aside_until) and self._set_aside_until.get(topic, 0) > self._clock()

    def note(
        self, records: Sequence[Publication], failures: Mapping[int, KafkaError], untried: Collection[int]
    ) -> None:
        """Learn from the outcome of one publish."""
        now = self._clock()
        failing = {records[index].topic for index, error in failures.items() if error.code() not in REFUSED}
        if failures or untried:
            passing = {record.topic for index, record in enumerate(records) if index not in failures}
            passing -= {records[index].topic for index in untried}
        else:
            passing = {record.topic for record in records}
        for topic in passing:
            self._acknowledged[topic] = now
            if self._failures:
                self._failures.pop(topic, None)
                self._set_aside_until.pop(topic, None)
        recent = {topic for topic, at in self._acknowledged.items() if now - at < LONELY_EVIDENCE_SECONDS}
        for topic in failing - recent if recent else ():
            failed_at = self._failures.setdefault(topic, [])
            failed_at[:] = [*failed_at[: LONELY_FAILURES_MAX - 1], now]
            if len(failed_at) == LONELY_FAILURES_MAX and max(self._acknowledged.values()) >= failed_at[0]:
                self._set_aside_until[topic] = now + LONELY_EVIDENCE_SECONDS
