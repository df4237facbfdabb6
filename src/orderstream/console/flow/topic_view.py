"""The topics and groups of Kafka, for the API and for the pages: what is known without a question, and what is asked.

If Kafka does not answer, the lists show the last figures and say so. Only topics and groups with our prefix are shown,
unless all are asked for.
"""

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from confluent_kafka import KafkaException
from msgspec import Struct

from orderstream.console.flow import records
from orderstream.console.flow.answers import Flow, PartitionLag
from orderstream.console.flow.records import Look, RecordsAnswer
from orderstream.console.flow.saga_map import UNKNOWN
from orderstream.console.flow.topics import (
    MemberAnswer,
    PartitionAnswer,
    SettingAnswer,
    TopicAnswer,
    Topics,
    message_of,
)
from orderstream.console.web import filters
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.http_server.problems import Problem
from orderstream.kafka.errors import KafkaRefusedError
from orderstream.settings import Settings

R = TypeVar("R")


class TopicRow(Struct, frozen=True, rename="camel"):
    """A topic of the list. Records and rate are only known of our own topics."""

    name: str
    is_ours: bool
    partitions: int
    records: int | None
    per_second: float | None
    settings: tuple[SettingAnswer, ...]
    consumers: tuple[str, ...]

    @property
    def kept_for(self) -> str:
        """How long the topic keeps its records, in words."""
        found = [setting.value for setting in self.settings if setting.name == "retention.ms"]
        if not found:
            return UNKNOWN
        return "no limit" if int(found[0]) < 0 else filters.age(int(found[0]) / 1_000)


class TopicsAnswer(Struct, frozen=True, rename="camel"):
    """The topics. `problem` says why a part is missing or old."""

    as_of: datetime
    topics: tuple[TopicRow, ...]
    problem: str | None


class GroupRow(Struct, frozen=True, rename="camel"):
    """A consumer group. Lag and partitions are only known of our own groups."""

    name: str
    is_ours: bool
    state: str | None
    members: tuple[MemberAnswer, ...]
    members_left_out: int
    lag: int | None
    lag_by_topic: dict[str, int]
    partitions: tuple[PartitionLag, ...]
    partitions_left_out: int


class GroupsAnswer(Struct, frozen=True, rename="camel"):
    """The consumer groups. `problem` says why a part is missing or old."""

    as_of: datetime
    groups: tuple[GroupRow, ...]
    problem: str | None


class TopicView:
    """Answers questions about topics. The functions block for some seconds at most."""

    def __init__(self, settings: Settings, topics: Topics, is_silent: Callable[[], bool]) -> None:
        self._settings = settings
        self._topics = topics
        self._is_silent = is_silent
        self._prefix = settings.kafka_topic_prefix

    def close(self) -> None:
        """Close the connections to Kafka."""
        self._topics.close()

    def list_topics(self, flow: Flow, *, everything: bool) -> TopicsAnswer:
        """Return the topics with their settings."""
        rows = {topic.name: topic for topic in flow.topics}
        problem = _silence(flow)
        others: dict[str, int] = {}
        settings: dict[str, tuple[SettingAnswer, ...]] = {}
        if problem is None:
            try:
                if everything:
                    ours = {self._prefix + name for name in rows}
                    others = {name: number for name, number in self._topics.names().items() if name not in ours}
                settings = self._topics.settings([*(self._prefix + name for name in rows), *others])
            except (KafkaException, KafkaRefusedError) as error:
                problem = f"Kafka did not answer: {message_of(error)}"
        readers = _readers(flow)
        known = [
            TopicRow(
                self._prefix + row.name,
                True,
                row.partitions,
                row.records,
                row.per_second,
                settings.get(self._prefix + row.name, ()),
                readers.get(row.name, ()),
            )
            for row in rows.values()
        ]
        known += [
            TopicRow(name, False, number, None, None, settings.get(name, ()), ()) for name, number in others.items()
        ]
        return TopicsAnswer(flow.as_of, tuple(known), problem)

    def topic(self, name: str) -> TopicAnswer:
        """Return a topic by its full name. Raises Problem 404 and 503."""
        partitions = self._partitions(name)
        settings = self._asked(lambda: self._topics.settings([name]))
        return TopicAnswer(name, partitions, settings.get(name, ()))

    def _partitions(self, name: str) -> tuple[PartitionAnswer, ...]:
        found = self._asked(lambda: self._topics.partitions(name))
        if found is None:
            raise Problem(404, "not-found", "Not found", "There is no such topic.")
        return found

    def read(self, look: Look) -> RecordsAnswer:
        """Return records of a topic. Raises Problem 400, 404 and 503."""
        number = len(self._partitions(look.topic))
        return self._asked(lambda: records.read(self._settings, look, number))

    def list_groups(self, flow: Flow, *, everything: bool) -> GroupsAnswer:
        """Return the consumer groups with their members and their lag."""
        problem = _silence(flow)
        groups = {}
        if problem is None:
            try:
                groups = {group.name: group for group in self._topics.groups()}
            except (KafkaException, KafkaRefusedError) as error:
                problem = f"Kafka did not answer: {message_of(error)}"
        lags = {self._prefix + group.name: group for group in flow.groups}
        ours = [self._prefix + name for name in CONSUMER_GROUPS]
        names = [*ours, *(name for name in groups if name not in ours and everything)]
        rows = []
        for name in names:
            group, lag = groups.get(name), lags.get(name)
            rows.append(
                GroupRow(
                    name=name,
                    is_ours=name in ours,
                    state=None if group is None else group.state,
                    members=() if group is None else group.members,
                    members_left_out=0 if group is None else group.members_left_out,
                    lag=None if lag is None else lag.lag,
                    lag_by_topic={} if lag is None else lag.lag_by_topic,
                    partitions=() if lag is None else lag.partitions,
                    partitions_left_out=0 if lag is None else lag.partitions_left_out,
                )
            )
        return GroupsAnswer(flow.as_of, tuple(rows), problem)

    def _asked(self, question: Callable[[], R]) -> R:
        """Return the answer of Kafka. Raises Problem 503 at once if Kafka is silent, or if it does not answer."""
        if self._is_silent():
            raise _unavailable("The overview says since when.")
        try:
            return question()
        except (KafkaException, KafkaRefusedError) as error:
            raise _unavailable(message_of(error)) from error


def _readers(flow: Flow) -> dict[str, tuple[str, ...]]:
    """Return by topic the groups that read it."""
    found: dict[str, tuple[str, ...]] = {}
    for group in flow.groups:
        for topic in group.lag_by_topic:
            found[topic] = (*found.get(topic, ()), group.name)
    return found


def _silence(flow: Flow) -> str | None:
    """Return that Kafka is silent, so that no request waits for it."""
    (kafka,) = (source for source in flow.sources if source.name == "kafka")
    if kafka.answers:
        return None
    since = f" since {kafka.silent_since:%H:%M:%S}" if kafka.silent_since else ""
    age = f" The figures are {kafka.age_seconds:.0f} s old." if kafka.age_seconds is not None else ""
    return f"Kafka has not answered{since}.{age}"


def _unavailable(why: str) -> Problem:
    return Problem(503, "kafka-unavailable", "Kafka does not answer", why, headers=[(b"retry-after", b"2")])
