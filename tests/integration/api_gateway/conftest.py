"""Starts gateways as separate processes, with a port, a database and a Redis for the test alone."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from orderstream.postgres.connect import Connection, connect
from tests.support.databases import Databases
from tests.support.processes import Process
from tests.support.servers import Servers
from tests.support.waiting import wait_until

START_SECONDS = 20


class Gateway:
    """A running gateway, with a client that checks the trace of every response."""

    def __init__(self, process: Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=20, event_hooks={"response": [_has_a_trace]}
        )

    @property
    def log(self) -> str:
        """The log of the gateway."""
        return self._log.read_text()

    def connect(self) -> socket.socket:
        """Open a TCP connection to the gateway."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.terminate()
        return self.process.wait(20)


def _has_a_trace(response: httpx.Response) -> None:
    version, trace_id, span_id, _flags = response.headers["traceresponse"].split("-")
    assert (version, len(trace_id), len(span_id)) == ("00", 32, 16)


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(log: Path, port: int | None = None, **settings: str) -> Iterator[Gateway]:
    """Run a gateway with these environment variables. Kill it at the end if it still runs."""
    port = port or free_port()
    with log.open("wb") as output:
        process = Process(
            [Path(sys.executable).with_name("orderstream"), "api-gateway"],
            stderr=output,
            env={"PORT": str(port), "LOG_FORMAT": "json", **settings},
        )
    gateway = Gateway(process, port, log)
    try:
        with gateway.client, process.watched(f"the gateway on port {port}", lambda: gateway.log):
            wait_until(lambda: _is_alive(gateway), START_SECONDS, "the gateway is alive")
            yield gateway
    finally:
        process.kill()
        process.wait()


def _is_alive(gateway: Gateway) -> bool:
    try:
        return gateway.client.get("/livez").status_code == 200
    except httpx.ConnectError:
        return False


Start = Callable[..., Gateway]


@pytest.fixture
def start(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Start]:
    """Start gateways on the database of this test, with further environment variables by name."""
    with ExitStack() as stack:
        count = 0

        def start(port: int | None = None, **settings: str) -> Gateway:
            nonlocal count
            count += 1
            variables = {"POSTGRES_URL": postgres_url, "REDIS_URL": redis_url, **settings}
            return stack.enter_context(running(tmp_path / f"gateway-{count}.log", port, **variables))

        yield start


@pytest.fixture(scope="module")
def shared_url(databases: Databases) -> Iterator[str]:
    """A database for all tests of a module. The tests must accept rows of other tests."""
    with databases.migrated() as url:
        yield url
        assert databases.deadlocks(url) == 0, "a deadlock: locks were taken in different orders"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, shared_url: str, servers: Servers) -> Iterator[Gateway]:
    """A gateway for all tests of a module. Its time budget for Redis suffices on a busy machine too."""
    log = tmp_path_factory.mktemp("gateway") / "log"
    with running(log, POSTGRES_URL=shared_url, REDIS_URL=servers.redis_url, CACHE_BUDGET_SECONDS="1") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def rows(shared_url: str) -> Iterator[Connection]:
    """A connection to the database of the module."""
    with connect(shared_url, "test") as connection:
        yield connection


def elapsed(action: Callable[[], object]) -> float:
    """Run `action` and return the seconds that it took."""
    started = time.monotonic()
    action()
    return time.monotonic() - started
