"""A console that watches real servers, with topics and a database of its own, shared by the tests of a module."""

from collections.abc import Iterator

import pytest

from orderstream.console.flow.kafka_reader import OUR_TOPICS
from orderstream.kafka.topics import ensure_topics
from orderstream.settings import Settings
from tests.support.consoles import RunningConsole, running_console
from tests.support.databases import Databases
from tests.support.servers import Servers
from tests.support.topics import end_offsets

PREFIX = "flow-"


@pytest.fixture(scope="module")
def watched(databases: Databases, servers: Servers) -> Iterator[Settings]:
    """Settings with topics of this module. One process is watched, on a port that a test may use."""
    with databases.migrated() as url:
        settings = Settings.model_validate(
            {
                "postgres_url": url,
                "redis_url": servers.redis_url,
                "kafka_brokers": servers.kafka_brokers,
                "kafka_topic_prefix": PREFIX,
                "kafka_partitions": 2,
            }
        )
        ensure_topics(settings)
        end_offsets(servers.kafka_brokers, [PREFIX + topic for topic in OUR_TOPICS])  # waits for the leaders
        yield settings


@pytest.fixture(scope="module")
def console(watched: Settings) -> Iterator[RunningConsole]:
    """A console that watches the servers of this run."""
    with running_console(watched) as running:
        yield running
