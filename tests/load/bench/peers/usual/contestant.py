"""The usual way to write an event-driven backend in Python, as a contestant of `make bench`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from orderstream.local.processes.state import shared_cache
from orderstream.local.servers.kafka import Kafka
from tests.load.bench.peers import venv
from tests.load.bench.peers.servers import LOOPBACK, Program, Servers, listens, servers

_HERE = Path(__file__).parent
_REQUIREMENTS = _HERE / "requirements.txt"
_MODULES = f"{_HERE / 'application'}:{_HERE.parent / 'application'}"
_PARTITIONS = 4
_TOPICS = ("order.created", "payment.authorized", "inventory.reserved", "inventory.failed", "order.updated")
_CONSUMERS = ("payment", "inventory", "settlement")
_TOPICS_SECONDS = 30


@dataclass(frozen=True)
class RunningUsualWay:
    """The API, its consumers and their servers."""

    base_url: str
    postgres_url: str
    _servers: Servers

    def processes(self) -> Mapping[str, int]:
        """Return the pid of each process."""
        return self._servers.processes()


class UsualWay:
    """FastAPI, aiokafka and SQLAlchemy, with a transaction and a record for each message."""

    name = "The usual way"
    about = (
        "FastAPI, aiokafka and SQLAlchemy with asyncpg, as most teams begin: the API writes the order, commits and"
        " publishes, and each of three consumers writes a row, commits and publishes for each message. Messages of one"
        " fetch are handled at the same time. The broker and PostgreSQL are those of OrderStream, with the same"
        " durability. It does more: nothing. It does less: it has no outbox, so an order whose process dies between"
        " commit and publish is lost to the other services and stays PROCESSING. It has no idempotency keys, no"
        " compensation, no timeouts, no dead letters, no cache, no metrics and no traces, and a message that fails ends"
        " its consumer."
    )
    in_flight: int | None = 64
    connections = 64
    has_java = True

    def install(self) -> None:
        """Install the libraries. Raises InstallError."""
        venv.install("usual", [_REQUIREMENTS])

    @contextmanager
    def running(self, folder: Path) -> Iterator[RunningUsualWay]:
        """Start the servers, the API and the three consumers."""
        python = venv.program(venv.install("usual", [_REQUIREMENTS]))
        with servers(folder) as started:
            kafka = Kafka(started.port("kafka"), started.port("kafka-controller"), started.home, shared_cache())
            started.start(kafka)
            _create_topics(kafka.brokers)
            base_url = _start_application(started, python, kafka.brokers)
            yield RunningUsualWay(base_url, started.postgres_url, started)


def _start_application(started: Servers, python: Path, brokers: str) -> str:
    """Start the processes of the application, and return the URL of the API."""
    env = {
        "PYTHONPATH": _MODULES,
        "DATABASE_URL": started.postgres_url.replace("postgresql:", "postgresql+asyncpg:"),
        "KAFKA_BROKERS": brokers,
    }
    for name in _CONSUMERS:
        started.start(Program(name, [python, "-m", name], lambda: True, env))
    port = started.port("api")
    options = ["--host", LOOPBACK, "--port", str(port), "--no-access-log", "--log-level", "warning"]
    argv: list[str | Path] = [python, "-m", "uvicorn", "api:app", *options]
    started.start(Program("api", argv, lambda: listens(port), env))
    return f"http://{LOOPBACK}:{port}"


def _create_topics(brokers: str) -> None:
    client = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
    wanted = [NewTopic(name, num_partitions=_PARTITIONS, replication_factor=1) for name in _TOPICS]
    for created in client.create_topics(wanted, operation_timeout=_TOPICS_SECONDS).values():
        created.result(_TOPICS_SECONDS)
