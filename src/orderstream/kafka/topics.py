"""The topics: created explicitly, with their settings, by whoever finds one missing."""

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.cimpl import NewTopic

from orderstream.domain.events import TOPICS
from orderstream.kafka.client import MAX_MESSAGE_BYTES, admin
from orderstream.settings import Settings

TIMEOUT_SECONDS = 10
CONSUMER_GROUPS = ("payment-worker", "inventory-worker", "order-service")


def dead_letter_topic(group: str) -> str:
    """Return the topic that holds the dead letters of a consumer group."""
    return f"{group}.dlq.v1"


def ensure_topics(settings: Settings) -> list[str]:
    """Create the topics that are missing and return their names. Existing ones are left as they are.

    Raises KafkaException when Kafka does not answer in time, KafkaRefusedError when it does not take us.
    """
    client = admin(settings, "topics")
    try:
        present = client.list_topics(timeout=TIMEOUT_SECONDS).topics
    except KafkaException:
        client.poll(0)
        raise
    missing = [topic for topic in _wanted(settings) if topic.topic not in present]
    if not missing:
        return []
    created = []
    for name, future in client.create_topics(missing, operation_timeout=TIMEOUT_SECONDS).items():
        try:
            future.result(2 * TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{name} was not created in time")) from error
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        else:
            created.append(name)
    return created


def _wanted(settings: Settings) -> list[NewTopic]:
    retention = str(settings.kafka_retention_hours * 3_600_000)
    events = [_topic(settings, name, {"retention.ms": retention}) for name in TOPICS]
    letters = [
        _topic(
            settings,
            dead_letter_topic(group),
            {
                "retention.ms": str(settings.dead_letter_retention_hours * 3_600_000),
                "max.message.bytes": str(MAX_MESSAGE_BYTES),
            },
        )
        for group in CONSUMER_GROUPS
    ]
    return events + letters


def _topic(settings: Settings, name: str, config: dict[str, str]) -> NewTopic:
    return NewTopic(
        name,
        num_partitions=settings.kafka_partitions,
        replication_factor=settings.kafka_replication_factor,
        config=config,
    )
