"""The three real servers without the services, for tests: their own directory and ports, fresh data, any of them to be
killed, paused and started again."""

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

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
    """One server of the three, in the hands of a test. Every method returns when it has taken effect."""

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
        """Start it and wait until it serves, on the port and the data it had. Raises ChildError."""
        self._service.install(self._context)
        self._child.start(self._service.command())
        if not await_ready(self._service, self._child, self._context.cancelled):
            raise ChildError(f"{self.name} {how_it_ended(self._child.exit_code() or 0)}", self._child.last_lines())

    def step(self, report: Callable[[str], None]) -> None:
        """`start`, as a step of the common start."""
        report("starting")
        self.start()

    def stop(self) -> None:
        """Stop it in its own good order."""
        self._child.stop()

    def kill(self) -> None:
        """End it at once, as `kill -9` does, with every process it has started."""
        self._child.kill()

    def pause(self) -> None:
        """Leave it alive and silent: connections stay open, nothing answers."""
        self._child.pause()

    def resume(self) -> None:
        """Undo `pause`."""
        self._child.resume()


class Servers:
    """The running servers and their addresses."""

    def __init__(self, state: StateDir, registry: ProcessRegistry, chosen: dict[str, int]) -> None:
        context = InstallContext(state, registry, _say_nothing, threading.Event())
        home, known = server_home.choose(state, _say_nothing), passwords.read_or_make(state)
        postgres_server = Postgres(chosen["postgres"], home, known)
        valkey_server = Valkey(chosen["valkey"], home, known.valkey)
        kafka_server = Kafka(chosen["kafka"], chosen["kafka-controller"], home, shared_cache())
        # Tests make databases and change settings of the server.
        self.postgres_url = postgres_server.superuser_url
        self.redis_url = valkey_server.url
        self.kafka_brokers = kafka_server.brokers
        self.postgres = Server(postgres_server, Child("postgres", state.log("postgres"), registry), context)
        self.valkey = Server(valkey_server, Child("valkey", state.log("valkey"), registry), context)
        self.kafka = Server(kafka_server, Child("kafka", state.log("kafka"), registry), context)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead a service to these servers."""
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
def servers(state_dir: Path) -> Iterator[Servers]:
    """Start real PostgreSQL, Valkey and Kafka with empty data under `state_dir`, and end them and the data afterwards.

    The logs stay in `state_dir`/logs. What an earlier, killed user of the same directory left running is ended first,
    so give the same directory every time. Raises BusyError while another process uses the directory, ChildError when a
    server does not start, FetchError when the jars are not there and cannot be fetched.
    """
    state = StateDir(state_dir)
    with state.lock():
        record = state.read()
        if record.run is not None:
            end_leftovers(record.run.children)
        _forget_data(state)
        chosen = ports.pick(_PORTS, record.ports)
        pid = os.getpid()
        registry = ProcessRegistry(state, StateRecord(chosen, Run(pid, start_time(pid) or "")))
        try:
            running = Servers(state, registry, chosen)
            running._start()
            yield running
        finally:
            registry.close()
            for child in registry.children:
                child.kill()
            registry.update(lambda record: setattr(record, "run", None))
            _forget_data(state)


def _say_nothing(text: str) -> None:
    """Swallow the progress: a test has no one to tell."""


def _forget_data(state: StateDir) -> None:
    server_home.remove(state)
