"""Dead letters of a test: topics of its own, letters in them, the index, and jobs."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from msgspec import Struct

from orderstream.dead_letters import index, jobs
from orderstream.dead_letters.index import Filter
from orderstream.dead_letters.jobs import Job, Kind, Selection
from orderstream.dead_letters.runner import JobRunner
from orderstream.dead_letters.tailer import Tailer
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.kafka.topics import dead_letter_topic, ensure_topics
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.support.topics import end_offsets, publish
from tests.support.waiting import wait_until

SERVICE = "inventory-worker"
SOURCE = "order.aborted.v1"
_numbers = itertools.count(1)
_prepared: set[str] = set()


class Letters(Struct):
    """Writes letters into topics of one test, and works on them as the console does."""

    settings: Settings
    connection: Connection

    @property
    def brokers(self) -> str:
        """The address of Kafka."""
        return self.settings.kafka_brokers

    def name(self, topic: str) -> str:
        """Return the name of a topic in Kafka."""
        return self.settings.kafka_topic_prefix + topic

    def write(self, number: int, service: str = SERVICE, value: bytes = b"no json", **notes: str) -> None:
        """Write letters with different keys. `notes` replace those of the worker; underscores become hyphens."""
        given = {
            "topic": SOURCE,
            "partition": "0",
            "offset": "7",
            "reason": "NOT_JSON",
            "error": "why",
            "attempts": "0",
        }
        given |= {name.replace("_", "-"): text for name, text in notes.items()}
        headers = {f"dlq-{name}": text.encode() for name, text in given.items()} | {"traceparent": b"00-x"}
        topic = self.name(f"{service}.dlq.v1")
        publish(self.brokers, [(topic, f"key-{next(_numbers)}".encode(), value) for _ in range(number)], headers)

    def index(self, wanted: int) -> None:
        """Read the topics until the index has `wanted` letters."""
        with self.tailing() as tailer:
            wait_until(lambda: tailer.read_available() == 0 and self.count() == wanted, 20, f"{wanted} letters")

    @contextmanager
    def tailing(self) -> Iterator[Tailer]:
        """Yield a tailer that the test runs by hand."""
        tailer = Tailer(self.settings, self.settings.postgres_url)
        try:
            yield tailer
        finally:
            tailer.close()

    def count(self, **filters: str) -> int:
        """Return the number of letters in the index that match."""
        found = index.groups(self.connection, Filter(**filters))  # type: ignore[arg-type]
        return sum(group.count for group in found.groups)

    def start(self, kind: Kind = "redrive", selection: Selection | None = None, rate: int = 5_000) -> Job:
        """Count and create a job, as a dry run and its confirmation do."""
        meant = selection or Selection(Filter())
        counted = jobs.count(self.connection, kind, meant)
        return jobs.create(self.connection, kind, meant, counted.confirm, actor="test", note="why", rate=rate)

    def run(self, job: Job) -> Job:
        """Work on a job until it is finished."""
        runner = JobRunner(self.settings, self.settings.postgres_url, job.id)
        try:
            assert runner.run_one()
        finally:
            runner.close()
        return self.job(job)

    def job(self, job: Job) -> Job:
        """Return a job as it is now."""
        found = jobs.job(self.connection, job.id)
        assert found is not None
        return found


@contextmanager
def own_letters(settings: Settings, connection: Connection) -> Iterator[Letters]:
    """Yield topics that all these tests share. The index of the test begins at their ends."""
    own = with_prefix(settings, f"letters-{os.getpid()}-")
    if settings.kafka_brokers not in _prepared:
        ensure_topics(own)
        _prepared.add(settings.kafka_brokers)
    letters = Letters(own, connection)
    with letters.tailing() as tailer:
        wait_until(lambda: _caught_up(tailer), 60, "the partitions of the new topics have leaders")
    names = [letters.name(dead_letter_topic(service)) for service in CONSUMER_GROUPS]
    for (name, partition), end in end_offsets(own.kafka_brokers, names).items():
        service = name.removeprefix(own.kafka_topic_prefix).removesuffix(dead_letter_topic(""))
        connection.execute(
            "UPDATE dead_letter_positions SET next_offset = %s WHERE service = %s AND partition = %s",
            (end, service, partition),
        )
    yield letters


def _caught_up(tailer: Tailer) -> bool:
    try:
        tailer.catch_up(0)
    except KafkaException:
        return False
    return True


def with_prefix(settings: Settings, prefix: str) -> Settings:
    """Return settings for topics of their own, with two partitions each."""
    return settings.model_copy(update={"kafka_topic_prefix": prefix, "kafka_partitions": 2})


def delete_topics(settings: Settings, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """Delete the topics with the prefix of these settings."""
    admin = AdminClient({"bootstrap.servers": settings.kafka_brokers, "log_level": 0})
    names = [name for name in admin.list_topics(timeout=10).topics if name.startswith(settings.kafka_topic_prefix)]
    for future in admin.delete_topics([name for name in names if wanted(name)], operation_timeout=10).values():
        future.result(10)
