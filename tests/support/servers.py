"""Real PostgreSQL, Valkey and Kafka for tests, without the services: with their own directory, ports and empty data.

A test can stop, kill, pause and restart each of them.
"""

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from psycopg.conninfo import make_conninfo

from orderstream.local.processes import ports, start_order
from orderstream.local.processes.child import Child, ChildError, how_it_ended
from orderstream.local.processes.pids import start_time
from orderstream.local.processes.progress import Terminal
from orderstream.local.processes.registry import ProcessRegistry, end_leftovers
from orderstream.local.processes.service import InstallContext, Service, await_ready
from orderstream.local.processes.state import Run, StateDir, StateRecord, shared_cache
from orderstream.local.servers import passwords, server_home
from orderstream.local.servers.kafka import Kafka
from orderstream.local.servers.postgres import Postgres
from orderstream.local.servers.valkey import Valkey

_PORTS = ("postgres", "valkey", "kafka", "kafka-controller")


class Server:
    """One server, controlled by a test. Every method returns when it has taken effect."""

    def __init__(self, service: Service, child: Child, context: InstallContext) -> None:
        self._service = service
        self._context = context
        self._child = child
        self.name = child.name
        self.log = child.log

    @property
    def pid(self) -> int:
        """The pid of the server."""
        return self._child.pid

    def start(self) -> None:
        """Start it with its port and its data, and wait until it is ready. Raises ChildError."""
        self._service.install(self._context)
        self._child.start(self._service.command())
        if not await_ready(self._service, self._child, self._context.cancelled):
            raise ChildError(f"{self.name} {how_it_ended(self._child.exit_code() or 0)}", self._child.last_lines())

    def step(self, report: Callable[[str], None]) -> None:
        """Start it as a step of the start of all servers."""
        report("starting")
        self.start()

    def stop(self) -> None:
        """Stop it with its stop signal, and wait."""
        self._child.stop()

    def kill(self) -> None:
        """Kill it and all its descendants."""
        self._child.kill()

    def pause(self) -> None:
        """Stop it with SIGSTOP. Connections stay open, and nothing answers."""
        self._child.pause()

    def resume(self) -> None:
        """Continue it after `pause`."""
        self._child.resume()


class Servers:
    """The running servers and their addresses."""

    def __init__(
        self, state: StateDir, registry: ProcessRegistry, chosen: dict[str, int], kind_of_kafka: type[Kafka]
    ) -> None:
        context = InstallContext(state, registry, _ignore, threading.Event())
        home, known = server_home.choose(state, _ignore), passwords.read_or_make(state)
        self._passwords = known
        postgres_server = Postgres(chosen["postgres"], home, known)
        valkey_server = Valkey(chosen["valkey"], home, known.valkey)
        kafka_server = kind_of_kafka(chosen["kafka"], chosen["kafka-controller"], home, shared_cache())
        # Tests create databases and change settings of the server.
        self.postgres_url = postgres_server.superuser_url
        self.redis_url = valkey_server.url
        self.kafka_brokers = kafka_server.brokers
        self.postgres = Server(postgres_server, Child("postgres", state.log("postgres"), registry), context)
        self.valkey = Server(valkey_server, Child("valkey", state.log("valkey"), registry), context)
        self.kafka = Server(kafka_server, Child("kafka", state.log("kafka"), registry), context)

    def console_url(self, postgres_url: str) -> str:
        """Return the URL of a database for the role of the console. The role has rights after db/console_role.sql."""
        account = {"user": "console", "password": self._passwords.postgres_console}
        return make_conninfo(postgres_url, **account)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a service that uses these servers."""
        return {
            "POSTGRES_URL": self.postgres_url,
            "REDIS_URL": self.redis_url,
            "KAFKA_BROKERS": self.kafka_brokers,
        }

    def _start(self) -> None:
        servers = (self.postgres, self.valkey, self.kafka)
        steps = [start_order.StartStep(server.name, (), server.step) for server in servers]
        start_order.run(steps, Terminal(io.StringIO()), threading.Event())


@contextlib.contextmanager
def servers(state_dir: Path, kind_of_kafka: type[Kafka] = Kafka) -> Iterator[Servers]:
    """Start PostgreSQL, Valkey and Kafka with empty data under `state_dir`. Afterwards, stop them and remove the data.

    The logs stay in `state_dir`/logs. Processes that an earlier, killed run left behind in this directory are ended
    first. Use the same directory each time. Raises BusyError if another process uses it, ChildError if a server does
    not start, FetchError if the jars cannot be fetched.
    """
    state = StateDir(state_dir)
    with state.lock():
        record = state.read()
        if record.run is not None:
            end_leftovers(record.run.children)
        server_home.remove(state)
        chosen = ports.pick(_PORTS, record.ports)
        pid = os.getpid()
        registry = ProcessRegistry(state, StateRecord(chosen, Run(pid, start_time(pid) or "")))
        try:
            running = Servers(state, registry, chosen, kind_of_kafka)
            running._start()
            yield running
        finally:
            registry.close()
            for child in registry.children:
                child.kill()
            registry.update(lambda record: setattr(record, "run", None))
            server_home.remove(state)


def _ignore(text: str) -> None:
    """Ignore the progress."""
