"""Makes Kafka clients with the settings that the promises rely on: admin, consumer and producer."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from orderstream.kafka.errors import KafkaRefusedError
from orderstream.settings import Settings, SettingsError
from orderstream.telemetry import logs

DELIVERY_TIMEOUT_SECONDS = 30
MAX_MESSAGE_BYTES = 2_097_152
"""Largest record that a producer sends. A dead letter holds the original record and more headers."""

_NO_OVERRIDES: Mapping[str, str] = {}
_QUOTED = re.compile(r'(?<!property )"(?![a-z]+(?:\.[a-z]+)+")[^"]*"')
"""A quoted text in librdkafka's error message, unless it is certainly the name of an option. It may be a secret."""

C = TypeVar("C")
log = logs.get()


def _common(settings: Settings, name: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.kafka_brokers,
        "client.id": name,
        "topic.metadata.refresh.interval.ms": 5_000,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "socket.keepalive.enable": True,
        "logger": _LogAdapter(name),
        "error_cb": _on_connection_error,
    }


def _on_connection_error(error: KafkaError) -> None:
    """Log an error of a connection, or raise KafkaRefusedError if Kafka refuses this client.

    librdkafka calls this from within `poll` or `flush`, which then raises the error. librdkafka retries all errors
    except refusals by itself. Of the TLS errors, only those of OpenSSL itself are refusals, because a broker may also
    die during a handshake.
    """
    refused_by_tls = error.code() == KafkaError._SSL and "SSL routines" in error.str()
    if refused_by_tls or error.code() == KafkaError._AUTHENTICATION:
        raise KafkaRefusedError(error.str())
    log.warning("kafka_unreachable", code=error.name(), detail=error.str()[:500])


class _LogAdapter:
    """Writes librdkafka's log lines to our log. librdkafka calls only `log`."""

    def __init__(self, name: str) -> None:
        self._log = log.bind(client=name)

    def log(self, level: int, _format: str, *arguments: object) -> None:
        del level
        self._log.debug("kafka_client", detail=" ".join(str(argument) for argument in arguments)[:500])


def _make(kind: Callable[[dict[str, Any]], C], ours: dict[str, Any], given: Mapping[str, str]) -> C:
    """Make a client. The given options override ours. Raises SettingsError if librdkafka refuses a given option."""
    try:
        return kind({**ours, **given})
    except (KafkaException, TypeError, AttributeError) as error:
        refused = not isinstance(error, KafkaException) or error.args[0].code() == KafkaError._INVALID_ARG
        if not given or not refused:
            raise
        why = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        raise SettingsError([f"KAFKA_OPTIONS: librdkafka says: {_QUOTED.sub('…', why).strip()}"]) from error


def check_options(settings: Settings) -> None:
    """Raise SettingsError if librdkafka refuses KAFKA_OPTIONS. Does not connect to Kafka."""
    producer(settings, "check")
    consumer(settings, "check").close()


def admin(settings: Settings, name: str) -> AdminClient:
    """Return an AdminClient. Keep it in a variable until its results have arrived.

    Raises SettingsError if librdkafka refuses KAFKA_OPTIONS, as `consumer` and `producer` do.
    """
    return _make(AdminClient, _common(settings, name), settings.kafka_options)


def consumer(settings: Settings, group: str, overrides: Mapping[str, Any] = _NO_OVERRIDES) -> Consumer:
    """Return a consumer of `group`. It commits no offsets by itself, and begins a new group at the first record.

    KAFKA_TOPIC_PREFIX is added to the group's name. The caller adds it to the names of topics. `overrides` are options
    that KAFKA_OPTIONS overrides.
    """
    return _make(
        Consumer,
        _common(settings, group)
        | {
            "group.id": settings.kafka_topic_prefix + group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            # With read_committed, an open transaction of another producer would block all records after it.
            "isolation.level": "read_uncommitted",
            "partition.assignment.strategy": "range",
            "group.protocol": "classic",
            "session.timeout.ms": 10_000,
            "heartbeat.interval.ms": 2_000,
            "max.poll.interval.ms": 180_000,
            # A record ends the wait at once. An idle consumer costs one request in this time.
            "fetch.wait.max.ms": 500,
            "fetch.queue.backoff.ms": 5,
            "queued.min.messages": 500,
            "fetch.message.max.bytes": 131_072,
            "queued.max.messages.kbytes": 8_192,
            "enable.partition.eof": False,
            "allow.auto.create.topics": False,
            **overrides,
        },
        settings.kafka_options,
    )


def producer(settings: Settings, name: str, overrides: Mapping[str, str] = _NO_OVERRIDES) -> Producer:
    """Return an idempotent producer with acks=all. `overrides` are options that also override KAFKA_OPTIONS."""
    return _make(
        Producer,
        _common(settings, name)
        | {
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
        },
        {**settings.kafka_options, **overrides},
    )
