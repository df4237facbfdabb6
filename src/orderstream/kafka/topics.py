"""Creates missing topics with their settings, and warns about harmful settings of existing topics."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic

from orderstream.domain.events import TOPICS
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.kafka.client import MAX_MESSAGE_BYTES, admin
from orderstream.settings import Settings

TIMEOUT_SECONDS = 10
REPLICAS_FOR_TWO_IN_SYNC = 3
"""With fewer replicas, min.insync.replicas=2 would stop all orders while one broker restarts."""


def dead_letter_topic(group: str) -> str:
    """Return the name of the dead-letter topic of a consumer group, without KAFKA_TOPIC_PREFIX."""
    return f"{group}.dlq.v1"


def ensure_topics(settings: Settings) -> list[str]:
    """Create the missing topics and return their names in Kafka. Existing topics are not changed.

    Raises KafkaException if Kafka does not answer in time, and KafkaRefusedError if it refuses this client.
    """
    client = admin(settings, "topics")
    present = _present(client)
    missing = [topic for topic in _wanted(settings) if topic.topic not in present]
    if not missing:
        return []
    created = []
    for name, future in client.create_topics(missing, operation_timeout=TIMEOUT_SECONDS).items():
        try:
            _result(future, f"{name} was not created in time")
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        else:
            created.append(name)
    return created


def topic_warnings(settings: Settings) -> list[str]:
    """Return a line for each harmful setting of an existing topic, with the command that fixes it.

    Raises the same errors as `ensure_topics`.
    """
    client = admin(settings, "topics")
    present = _present(client)
    wanted = {topic.topic: dict(topic.config or {}) for topic in _wanted(settings) if topic.topic in present}
    if not wanted:
        return []
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in wanted]
    found = []
    for resource, future in client.describe_configs(resources, request_timeout=TIMEOUT_SECONDS).items():
        name = resource.name
        config: dict[str, ConfigEntry] = _result(future, f"{name} was not described in time")
        replicas = min(len(partition.replicas) for partition in present[name].partitions.values())
        should = wanted[name] | {"min.insync.replicas": _in_sync(replicas)}
        found += [
            f"topic {name} has {key}={config[key].value}, which {why}. Fix: kafka-configs.sh --bootstrap-server"
            f" {settings.kafka_brokers} --alter --entity-type topics --entity-name {name}"
            f" --add-config {key}={should[key]}"
            for key, (is_bad, why) in _CHECKS.items()
            if key in config and is_bad(config[key].value, should[key], replicas)
        ]
    return sorted(found)


def _in_sync(replicas: int) -> str:
    return "2" if replicas >= REPLICAS_FOR_TWO_IN_SYNC else "1"


_Check = Callable[[Any, str, int], bool]
_CHECKS: Mapping[str, tuple[_Check, str]] = {
    "cleanup.policy": (
        lambda value, _wanted, _replicas: "compact" in value,
        "deletes events of orders, and refuses dead letters without a key",
    ),
    "max.message.bytes": (
        lambda value, wanted, _replicas: int(value) < int(wanted),
        "refuses large orders",
    ),
    "retention.ms": (
        lambda value, wanted, _replicas: 0 <= int(value) < int(wanted),
        "deletes records earlier than KAFKA_RETENTION_HOURS allows",
    ),
    "retention.bytes": (
        lambda value, _wanted, _replicas: int(value) >= 0,
        "may delete records that a service has not read yet",
    ),
    "min.insync.replicas": (
        lambda value, _wanted, replicas: (
            int(value) > replicas
            or (replicas >= REPLICAS_FOR_TWO_IN_SYNC and int(value) < 2)
            or int(value) == replicas > 1
        ),
        "either refuses all records while a broker is down, or acknowledges records that only one broker has",
    ),
    "message.timestamp.type": (
        lambda value, _wanted, _replicas: value != "LogAppendTime",
        "refuses records of a service with a wrong clock, or keeps them too long",
    ),
}
"""By setting: whether its value is bad, given (value, wanted, replicas), and the effect of a bad value."""


def _present(client: AdminClient) -> dict[str, Any]:
    try:
        return client.list_topics(timeout=TIMEOUT_SECONDS).topics
    except KafkaException:
        client.poll(0)
        raise


def _result(future: "Future[Any]", timeout_message: str) -> Any:
    try:
        return future.result(2 * TIMEOUT_SECONDS)
    except TimeoutError as error:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, timeout_message)) from error


def _wanted(settings: Settings) -> list[NewTopic]:
    hours = dict.fromkeys(TOPICS, settings.kafka_retention_hours)
    hours |= {dead_letter_topic(group): settings.dead_letter_retention_hours for group in CONSUMER_GROUPS}
    replicas = settings.kafka_replication_factor
    return [
        NewTopic(
            settings.kafka_topic_prefix + name,
            num_partitions=settings.kafka_partitions,
            replication_factor=replicas,
            config={
                "cleanup.policy": "delete",
                "retention.ms": str(kept_hours * 3_600_000),
                "retention.bytes": "-1",
                "max.message.bytes": str(MAX_MESSAGE_BYTES),
                "min.insync.replicas": _in_sync(replicas),
                "message.timestamp.type": "LogAppendTime",
            },
        )
        for name, kept_hours in hours.items()
    ]
