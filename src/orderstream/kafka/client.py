"""Kafka clients with the settings that the promises rest on, and the one way to publish: all, or an error."""

import re
import threading
import time
from collections.abc import Callable, Sequence
from threading import Event as StopSignal
from typing import Any, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from msgspec import Struct

from orderstream.settings import Settings, SettingsError

DELIVERY_TIMEOUT_SECONDS = 30
FLUSH_TIMEOUT_SECONDS = DELIVERY_TIMEOUT_SECONDS + 5
FLUSH_SLICE_SECONDS = 0.2
MAX_MESSAGE_BYTES = 2_097_152
"""Largest record a producer sends: a dead letter carries the original and some more."""

TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError._INVALID_ARG)
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
    """Not every record was acknowledged; `code` is librdkafka's of the first failure."""

    def __init__(self, error: KafkaError, failed: int) -> None:
        super().__init__(f"{failed} records were not acknowledged: {error.str()}")
        self.code = error.code()
        self.fatal = error.fatal() or self.code == KafkaError._FATAL

    @property
    def poisonous(self) -> bool:
        """Say whether a record itself is at fault, so that a retry of the same records cannot succeed."""
        return self.code in TOO_LARGE


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
    """Return a consumer of `group` that commits nothing by itself and starts a new group at the beginning."""
    return _make(
        Consumer,
        _common(settings, group)
        | {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
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
    """An idempotent producer with acks=all. Used by one thread."""

    def __init__(self, settings: Settings, name: str, stop: StopSignal | None = None) -> None:
        self._stop = stop or StopSignal()
        self._settings = settings
        self._config = _common(settings, name) | {
            "acks": "all",
            "enable.idempotence": True,
            "max.in.flight.requests.per.connection": 5,
            "delivery.timeout.ms": DELIVERY_TIMEOUT_SECONDS * 1_000,
            "linger.ms": 1,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "queue.buffering.max.messages": 20_000,
            "queue.buffering.max.kbytes": 65_536,
            "partitioner": "murmur2_random",
        }
        self._producer = _make(Producer, self._config, settings)

    def publish(self, records: Sequence[Publication]) -> None:
        """Send the records and wait until Kafka has acknowledged every one: 35 s at most, and only until `stop`.

        Raises PublishError when one was not. Some of the others may then be in their topics: publishing is at least
        once, and readers know events by their id.
        """
        if not records:
            return
        report = _Report(len(records))
        for one in records:
            self._enqueue(one, report)
        self._flush(report)
        if failure := report.failure():
            if failure.fatal:
                self._producer = _make(Producer, self._config, self._settings)
            raise failure

    def _flush(self, report: "_Report") -> None:
        deadline = time.monotonic() + FLUSH_TIMEOUT_SECONDS
        try:
            while self._producer.flush(FLUSH_SLICE_SECONDS) and time.monotonic() < deadline and not self._stop.is_set():
                continue
        except KafkaException as error:
            report.refused(error.args[0])

    def _enqueue(self, one: Publication, report: "_Report") -> None:
        for _ in range(10):
            try:
                self._producer.produce(one.topic, one.value, one.key, on_delivery=report, headers=one.headers)
            except BufferError:
                self._producer.flush(1)
            except KafkaException as error:
                report.refused(error.args[0])
                return
            else:
                return
        report.refused(KafkaError(KafkaError._QUEUE_FULL))


class _Report:
    """Counts the delivery reports of one publish; an outstanding one is a failure too."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._delivered = 0
        self._failed = 0
        self._first: KafkaError | None = None
        self._lock = threading.Lock()

    def __call__(self, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self._delivered += 1
        else:
            self.refused(error)

    def refused(self, error: KafkaError) -> None:
        """Note a failure; a poisonous record's weighs more than that of its neighbours."""
        with self._lock:
            self._failed += 1
            if self._first is None or error.code() in (*TOO_LARGE, KafkaError._FATAL) or error.fatal():
                self._first = error

    def failure(self) -> PublishError | None:
        """Return what went wrong, if anything did."""
        if self._delivered == self._expected:
            return None
        return PublishError(self._first or KafkaError(KafkaError._TIMED_OUT), self._expected - self._delivered)
