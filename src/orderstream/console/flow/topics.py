"""Describes topics and consumer groups for the pages: partitions, offsets, configuration and members.

Every request to Kafka has a time limit, and the answers that change rarely are kept for a while. No request goes to the
coordinator of a group by way of an admin request that may abort the process (see kafka/group_offsets.py).
"""

import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType
from msgspec import Struct

from orderstream.kafka.client import admin, consumer
from orderstream.kafka.errors import KafkaRefusedError
from orderstream.kafka.group_offsets import log_offsets
from orderstream.kafka.partitions import LOG_END, LOG_START
from orderstream.settings import Settings

ANSWER_SECONDS = 3.0
CONFIGURATION_SECONDS = 60.0
MEMBERS_SECONDS = 5.0
"""How long the configuration of topics, and the members of groups, are kept."""
TOPICS_MAX = 500
GROUPS_MAX = 200
MEMBERS_MAX = 100
READER = "console"

SHOWN_SETTINGS = (
    *("retention.ms", "retention.bytes", "cleanup.policy", "max.message.bytes", "min.insync.replicas"),
    *("message.timestamp.type", "segment.bytes", "segment.ms", "compression.type"),
)
"""The settings of a topic that matter here. Kafka has some thirty more."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class PartitionAnswer(Struct, frozen=True, rename="camel"):
    """A partition: its first offset, the offset after its last record, and the brokers that hold it."""

    partition: int
    first: int
    end: int
    leader: int
    replicas: int
    in_sync: int


class SettingAnswer(Struct, frozen=True, rename="camel"):
    """A setting of a topic, and whether it is the default of the broker."""

    name: str
    value: str
    is_default: bool


class TopicAnswer(Struct, frozen=True, rename="camel"):
    """A topic with all its partitions. `name` is its full name in Kafka."""

    name: str
    partitions: tuple[PartitionAnswer, ...]
    settings: tuple[SettingAnswer, ...]


class MemberAnswer(Struct, frozen=True, rename="camel"):
    """A member of a group, and the partitions that it reads: topic -> numbers."""

    id: str
    client_id: str
    host: str
    partitions: dict[str, list[int]]


class GroupAnswer(Struct, frozen=True, rename="camel"):
    """A consumer group and its members, at most MEMBERS_MAX."""

    name: str
    state: str
    protocol: str
    members: tuple[MemberAnswer, ...]
    members_left_out: int


class Topics:
    """Asks Kafka with one admin client and one consumer, which are opened at the first question."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._admin: AdminClient | None = None
        self._consumer: Consumer | None = None
        self._settings_of: dict[str, tuple[float, tuple[SettingAnswer, ...]]] = {}
        self._groups: tuple[float, tuple[GroupAnswer, ...]] | None = None

    def close(self) -> None:
        """Close the clients."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
            self._consumer = self._admin = None

    def names(self) -> dict[str, int]:
        """Return the topics of the brokers and their numbers of partitions, at most TOPICS_MAX.

        Raises KafkaException or KafkaRefusedError.
        """
        found = self._clients()[0].list_topics(timeout=ANSWER_SECONDS).topics
        return {name: len(found[name].partitions) for name in sorted(found)[:TOPICS_MAX]}

    def partitions(self, name: str) -> tuple[PartitionAnswer, ...] | None:
        """Return the partitions of a topic, or None if there is no such topic. Raises the same errors as `names`."""
        deadline = time.monotonic() + ANSWER_SECONDS
        reader = self._clients()[1]
        # The consumer asks without creating the topic. By the AdminClient's request, a broker may create it.
        found = reader.list_topics(name, timeout=ANSWER_SECONDS).topics.get(name)
        if found is None or found.error is not None or not found.partitions:
            return None
        keys = [(name, number) for number in sorted(found.partitions)]
        firsts = log_offsets(reader, keys, LOG_START, deadline)
        ends = log_offsets(reader, keys, LOG_END, deadline)
        return tuple(
            PartitionAnswer(
                key[1],
                firsts[key],
                ends[key],
                found.partitions[key[1]].leader,
                len(found.partitions[key[1]].replicas),
                len(found.partitions[key[1]].isrs),
            )
            for key in keys
        )

    def settings(self, names: list[str]) -> dict[str, tuple[SettingAnswer, ...]]:
        """Return the settings of existing topics. Kafka is asked for those that are not known or are old."""
        now = self._clock()
        wanted = [name for name in names if self._age(name, now) > CONFIGURATION_SECONDS][:TOPICS_MAX]
        if wanted:
            resources = [ConfigResource(ResourceType.TOPIC, name) for name in wanted]
            answers = self._clients()[0].describe_configs(resources, request_timeout=ANSWER_SECONDS)
            for resource, answer in answers.items():
                found: Mapping[str, ConfigEntry] = _result(answer)
                self._settings_of[resource.name] = now, tuple(_shown(found))
        return {name: self._settings_of[name][1] for name in names if name in self._settings_of}

    def _age(self, name: str, now: float) -> float:
        return now - self._settings_of[name][0] if name in self._settings_of else float("inf")

    def groups(self) -> tuple[GroupAnswer, ...]:
        """Return the consumer groups of the brokers, at most GROUPS_MAX. Raises the same errors as `names`."""
        known, now = self._groups, self._clock()
        if known is None or now - known[0] > MEMBERS_SECONDS:
            client = self._clients()[0]
            # list_groups of AdminClient itself warns that it is old. But the newer requests may abort the process.
            found: list[Any] = super(AdminClient, client).list_groups(timeout=ANSWER_SECONDS)
            groups = sorted((group for group in found if group.protocol_type == "consumer"), key=lambda group: group.id)
            known = self._groups = now, tuple(map(_group, groups[:GROUPS_MAX]))
        return known[1]

    def _clients(self) -> tuple[AdminClient, Consumer]:
        with self._lock:
            if self._admin is None or self._consumer is None:
                self._admin = admin(self._settings, READER)
                self._consumer = consumer(self._settings, READER)
            self._admin.poll(0)
            self._consumer.poll(0)
            return self._admin, self._consumer


def _result(answer: "Future[Any]") -> Any:
    try:
        return answer.result(2 * ANSWER_SECONDS)
    except TimeoutError as error:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from error


def _shown(found: Mapping[str, ConfigEntry]) -> Iterator[SettingAnswer]:
    for name in SHOWN_SETTINGS:
        if name in found and not found[name].is_sensitive:
            yield SettingAnswer(name, str(found[name].value), bool(found[name].is_default))


def _group(found: Any) -> GroupAnswer:
    members = tuple(
        MemberAnswer(member.id, member.client_id, member.client_host.lstrip("/"), _assigned(member.assignment))
        for member in found.members[:MEMBERS_MAX]
    )
    return GroupAnswer(found.id, found.state, found.protocol, members, len(found.members) - len(members))


def _assigned(assignment: bytes) -> dict[str, list[int]]:
    """Return the partitions in the assignment of a member: the format of Kafka's consumer protocol, version 0 on.

    An assignment that cannot be read is empty: another client may have written anything.
    """
    found: dict[str, list[int]] = {}
    try:
        (number,), at = struct.unpack_from(">i", assignment, 2), 6
        for _ in range(number):
            (length,) = struct.unpack_from(">h", assignment, at)
            topic = assignment[at + 2 : at + 2 + length].decode()
            (partitions,) = struct.unpack_from(">i", assignment, at + 2 + length)
            found[topic] = list(struct.unpack_from(f">{partitions}i", assignment, at + 6 + length))
            at += 6 + length + 4 * partitions
    except (struct.error, UnicodeDecodeError):
        return {}
    return found


def message_of(error: KafkaException | KafkaRefusedError) -> str:
    """Return why Kafka did not answer, in words."""
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return str(error.args[0].str())
    return str(error)
