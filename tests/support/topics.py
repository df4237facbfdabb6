"""Reads and writes the shared topics. A test sees only records that were written after its start."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic
from msgspec import Struct

from orderstream.domain.events import TOPICS, Event, Payload, topic_of
from orderstream.kafka.envelope import decode
from orderstream.kafka.topics import dead_letter_topic
from tests.support.contracts import assert_event
from tests.support.waiting import wait_until

_TIMEOUT_SECONDS = 10.0
_NO_LEADER_YET = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)


class Letter(Struct, frozen=True):
    """A record in a topic."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]

    def event(self) -> Event[Payload]:
        """Check the event in it against its contract, and return it."""
        assert_event(self.topic, self.key, self.value)
        return decode(self.topic, self.key, self.value)


def _client(brokers: str, group: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
        }
    )


def _partitions(brokers: str, topics: Iterable[str]) -> list[TopicPartition]:
    """Return every partition of these topics. A topic that was just created may be unknown for a moment."""
    admin, names = AdminClient({"bootstrap.servers": brokers, "log_level": 0}), list(topics)

    def ask() -> list[TopicPartition]:
        known = admin.list_topics(timeout=_TIMEOUT_SECONDS).topics
        if not known.keys() >= set(names):
            return []
        return [TopicPartition(name, number) for name in names for number in known[name].partitions]

    return wait_until(ask, _TIMEOUT_SECONDS, f"the topics {', '.join(names)} are known")


def _ends(brokers: str, topics: Iterable[str]) -> list[TopicPartition]:
    """Return the end of each partition. A partition that was just created may have no leader for a moment."""
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
    partitions = _partitions(brokers, topics)
    latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]

    def ask() -> list[TopicPartition]:
        answers = admin.list_offsets(dict.fromkeys(partitions, latest), request_timeout=_TIMEOUT_SECONDS)
        try:
            return [
                TopicPartition(partition.topic, partition.partition, answer.result(_TIMEOUT_SECONDS).offset)
                for partition, answer in answers.items()
            ]
        except KafkaException as error:
            if error.args[0].code() in _NO_LEADER_YET:
                return []
            raise

    return wait_until(ask, _TIMEOUT_SECONDS, "every partition has a leader")


def end_offsets(brokers: str, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    """Return the end offset of each partition."""
    return {(end.topic, end.partition): end.offset for end in _ends(brokers, topics)}


def begin_here(brokers: str, group: str, topics: Iterable[str] = TOPICS) -> None:
    """Commit the end offsets for `group`, so that it reads only later records. It must have no members."""
    consumer = _client(brokers, group)
    try:
        consumer.commit(offsets=_ends(brokers, topics), asynchronous=False)
    finally:
        consumer.close()


def offsets_of(brokers: str, group: str, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    """Return the offsets that `group` has committed."""
    consumer = _client(brokers, group)
    try:
        found = consumer.committed(_partitions(brokers, topics), timeout=_TIMEOUT_SECONDS)
        return {(partition.topic, partition.partition): partition.offset for partition in found}
    finally:
        consumer.close()


def new_group(brokers: str, group: str) -> None:
    """Create a consumer group that reads only later records, and the topic of its dead letters."""
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
    letters = NewTopic(dead_letter_topic(group), 1, 1, config={"max.message.bytes": "2097152"})
    for future in admin.create_topics([letters], operation_timeout=_TIMEOUT_SECONDS).values():
        future.result(_TIMEOUT_SECONDS)
    begin_here(brokers, group)


def publish(
    brokers: str, records: Iterable[tuple[str, bytes | None, bytes | None]], headers: Mapping[str, bytes] | None = None
) -> list[tuple[str, int, int]]:
    """Write raw records (topic, key, value), and return topic, partition and offset of each."""
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 0, "partitioner": "murmur2_random"})
    positions: dict[int, tuple[str, int, int]] = {}
    numbered = list(enumerate(records))

    def note(number: int) -> Callable[..., None]:
        def report(error: object, message: object) -> None:
            assert error is None
            positions[number] = (message.topic(), message.partition(), message.offset())  # type: ignore[attr-defined]

        return report

    for number, (name, key, value) in numbered:
        producer.produce(name, value, key, on_delivery=note(number), headers=dict(headers or {}))
    assert producer.flush(3 * _TIMEOUT_SECONDS) == 0
    return [positions[number] for number, _ in numbered]


def publish_events(
    brokers: str,
    events: Iterable[Event[Payload]],
    headers: Mapping[str, bytes] | None = None,
    *,
    topic_prefix: str = "",
) -> list[tuple[str, int, int]]:
    """Write events as the services do."""
    records = [
        (topic_prefix + topic_of(event.type), event.correlation_id.encode(), msgspec.json.encode(event))
        for event in events
    ]
    return publish(brokers, records, headers)


def _headers(message: Message) -> list[tuple[str, object]]:
    return list(message.headers() or [])  # type: ignore[arg-type]


class Tap:
    """Reads the records that are written to topics after it is opened, and keeps them in `letters`."""

    def __init__(self, brokers: str, topics: Iterable[str]) -> None:
        self._brokers = brokers
        self._topics = tuple(topics)
        self._consumer = _client(brokers, "tap")
        self._next = end_offsets(brokers, self._topics)
        self._consumer.assign([TopicPartition(*partition, offset) for partition, offset in self._next.items()])
        self.letters: list[Letter] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._consumer.close()

    def read(self, seconds: float = 0.05) -> list[Letter]:
        """Read the records that arrive within `seconds`, and return all records until now."""
        for message in self._consumer.consume(1_000, seconds):
            assert message.error() is None, message.error()
            name, partition, offset = message.topic(), message.partition(), message.offset()
            assert name is not None
            assert partition is not None
            assert offset is not None
            headers = {key: value for key, value in _headers(message) if isinstance(value, bytes)}
            self._next[name, partition] = offset + 1
            self.letters.append(Letter(name, partition, offset, message.key(), message.value(), headers))
        return self.letters

    def until(self, enough: Callable[[list[Letter]], object], limit_seconds: float, why: str) -> list[Letter]:
        """Read until `enough` is true for all records until now. Fail with `why` after `limit_seconds`."""
        try:
            wait_until(lambda: enough(self.read()), limit_seconds, why)
        except AssertionError as error:
            error.add_note(f"{len(self.letters)} records were read from {', '.join(self._topics)}")
            raise
        return self.letters

    def so_far(self) -> list[Letter]:
        """Read to the current end of the topics."""
        ends = end_offsets(self._brokers, self._topics)
        return self.until(lambda _: self._next == ends, _TIMEOUT_SECONDS, "everything written so far")

    def count(self, number: int, limit_seconds: float = 20) -> list[Letter]:
        """Read until there are `number` records. Fail if there are more."""
        letters = self.until(lambda seen: len(seen) >= number, limit_seconds, f"{number} records")
        assert len(letters) == number
        return letters


@contextmanager
def topic_settings(brokers: str, name: str, values: Mapping[str, str]) -> Iterator[None]:
    """Change settings of a topic until the block ends."""
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})

    def alter(wanted: Mapping[str, str]) -> None:
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in wanted.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        for future in admin.incremental_alter_configs([resource]).values():
            future.result(_TIMEOUT_SECONDS)
        wait_until(lambda: _differs(admin, name, wanted) is False, _TIMEOUT_SECONDS, "the broker has the settings")

    before = _config(admin, name)
    alter(values)
    try:
        yield
    finally:
        alter({key: before[key] for key in values})


def config_of(brokers: str, name: str) -> dict[str, str]:
    """Return the settings of a topic."""
    return _config(AdminClient({"bootstrap.servers": brokers, "log_level": 0}), name)


def _config(admin: AdminClient, name: str) -> dict[str, str]:
    def ask() -> dict[str, str]:
        (future,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name)]).values()
        try:
            return {key: entry.value for key, entry in future.result(_TIMEOUT_SECONDS).items()}
        except KafkaException as error:
            if error.args[0].code() in _NO_LEADER_YET:
                return {}
            raise

    return wait_until(ask, _TIMEOUT_SECONDS, f"the settings of {name}")


def _differs(admin: AdminClient, name: str, wanted: Mapping[str, str]) -> bool:
    config = _config(admin, name)
    return any(config[key] != value for key, value in wanted.items())
