"""Fixtures for all tests: real PostgreSQL, Valkey and Kafka, started once per run, with separate data for each test.

A run has its own ports and state, and reads no settings from the environment. It leaves nothing behind. If it fails,
the logs of the servers stay under .orderstream/test-<n>.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from orderstream.kafka.topics import ensure_topics
from orderstream.local.processes.state import BusyError, checkout
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from tests.support.browser_program import HOW_TO_GET_ONE, NO_BROWSER
from tests.support.databases import Databases
from tests.support.servers import Servers
from tests.support.servers import servers as start_servers

_COSTS = ("unit", "property", "integration", "browser", "e2e")
_RUNS_AT_ONCE = 8

for _name in Settings.model_fields:
    os.environ.pop(_name.upper(), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run cheap tests first."""
    tests = Path(__file__).parent
    items.sort(key=lambda item: _COSTS.index(item.path.relative_to(tests).parts[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """If there was no browser, say loudly that the browser tests did not run, and how to get one."""
    skipped = [report for report in terminalreporter.getreports("skipped") if NO_BROWSER in str(report.longrepr)]
    if skipped:
        terminalreporter.write_sep("!", "THE BROWSER TESTS DID NOT RUN", red=True, bold=True)
        terminalreporter.write_line(f"{len(skipped)} tests of the console were skipped: {NO_BROWSER}.")
        terminalreporter.write_line(HOW_TO_GET_ONE, bold=True)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """The real servers of this run. A test that stops or pauses a server must start or resume it."""
    with ExitStack() as stack:
        running, folder = _start_servers(stack)
        yield running
    if not request.session.testsfailed:
        shutil.rmtree(folder, ignore_errors=True)


def _start_servers(stack: ExitStack) -> tuple[Servers, Path]:
    """Start the servers in the first state directory that no other run uses."""
    for number in range(_RUNS_AT_ONCE):
        folder = checkout() / ".orderstream" / f"test-{number}"
        try:
            return stack.enter_context(start_servers(folder)), folder
        except BusyError:
            continue
    raise RuntimeError(f"{_RUNS_AT_ONCE} test runs are already running")


@pytest.fixture(scope="session")
def databases(servers: Servers) -> Databases:
    """Creates further databases, empty or migrated."""
    return Databases(servers.postgres_url)


@pytest.fixture
def postgres_url(databases: Databases) -> Iterator[str]:
    """A migrated database without rows, for this test only. No deadlock may happen in it.

    The services retry after a deadlock, so that nothing else would show a wrong order of locks.
    """
    with databases.migrated() as url:
        yield url
        assert databases.deadlocks(url) == 0, "a deadlock: locks were taken in different orders"


@pytest.fixture
def connection(postgres_url: str) -> Iterator[Connection]:
    """A connection to the database of the test, in autocommit mode, opened as a service opens it."""
    with connect(postgres_url, "test") as opened:
        yield opened


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """The URL of Valkey, which is emptied for this test."""
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()
    return servers.redis_url


@pytest.fixture(scope="session")
def kafka_brokers(servers: Servers) -> str:
    """The address of Kafka, with every topic. All tests share the topics. See `tests.support.topics`."""
    ensure_topics(Settings.model_validate({"kafka_brokers": servers.kafka_brokers}))
    return servers.kafka_brokers


@pytest.fixture
def settings(postgres_url: str, redis_url: str, kafka_brokers: str) -> Settings:
    """Settings with the addresses of this test's servers. All others have their defaults."""
    return Settings.model_validate(
        {"postgres_url": postgres_url, "redis_url": redis_url, "kafka_brokers": kafka_brokers}
    )
