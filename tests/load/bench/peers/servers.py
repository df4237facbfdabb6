"""The processes of a contestant: PostgreSQL with the options of OrderStream's, and the programs it adds.

Each of them has a log below the folder of the contestant, and ends with it.
"""

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from orderstream.local.processes import ports
from orderstream.local.processes.child import Child, ChildError, Command, how_it_ended
from orderstream.local.processes.pids import start_time
from orderstream.local.processes.registry import ProcessRegistry, end_leftovers
from orderstream.local.processes.service import InstallContext, Service, await_ready
from orderstream.local.processes.state import Run, StateDir, StateRecord
from orderstream.local.servers import passwords, server_home
from orderstream.local.servers.postgres import Postgres

LOOPBACK = ports.LOOPBACK
_CONNECT_SECONDS = 0.5
_TABLES = Path(__file__).with_name("tables.sql")


@dataclass(frozen=True)
class Program:
    """A program of a contestant. It is ready when `answers` returns true.

    Its environment has the variables `env`, and of this process only PATH and HOME.
    """

    name: str
    argv: Sequence[str | Path]
    answers: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = Path("/")
    needs: tuple[str, ...] = ()

    def install(self, context: InstallContext) -> None:
        """Do nothing: the contestant installed it."""

    def command(self) -> Command:
        """Return the command that starts it."""
        known = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return Command([str(word) for word in self.argv], {**known, **self.env}, self.cwd)

    def ready(self, child: Child) -> bool:  # noqa: ARG002 - each program has its own port
        """Tell whether it answers."""
        return self.answers()


class Servers:
    """The running processes of one contestant. `data` is an empty folder for the files of its programs."""

    def __init__(self, state: StateDir, registry: ProcessRegistry, taken: dict[str, int]) -> None:
        self._registry = registry
        self._taken = taken
        self._context = InstallContext(state, registry, _ignore, threading.Event())
        self.home = server_home.choose(state, _ignore)
        self.data = state.root / "data"
        self._postgres = Postgres(self.port("postgres"), self.home, passwords.read_or_make(state))

    @property
    def postgres_url(self) -> str:
        """The URL of the database `orders`. Its account owns the database."""
        return self._postgres.url

    @property
    def superuser_url(self) -> str:
        """The URL of the superuser, for a contestant that needs more databases."""
        return self._postgres.superuser_url

    def port(self, name: str) -> int:
        """Return the port `name`: a free one the first time, then the same."""
        if name not in self._taken:
            self._taken |= ports.pick([name], {}, avoid=self._taken.values())
        return self._taken[name]

    def start(self, service: Service) -> Child:
        """Start a server or a `Program`, and return when it is ready.

        Raises ChildError if it ends or takes too long.
        """
        service.install(self._context)
        child = Child(service.name, self._context.state.log(service.name), self._registry)
        child.start(service.command())
        if not await_ready(service, child, self._context.cancelled):
            raise ChildError(f"{service.name} {how_it_ended(child.exit_code() or 0)}", child.last_lines())
        return child

    def processes(self) -> Mapping[str, int]:
        """Return the pid of each process by its name. Raises ChildError if one has ended."""
        for child in self._registry.children:
            if (code := child.exit_code()) is not None:
                raise ChildError(f"{child.name} {how_it_ended(code)}", child.last_lines())
        return {child.name: child.pid for child in self._registry.children}

    def _start_postgres(self, *, tables: bool) -> None:
        self.start(self._postgres)
        if tables:
            with psycopg.connect(self.postgres_url) as connection:
                connection.execute(_TABLES.read_bytes())


@dataclass(frozen=True)
class Application:
    """A contestant that serves orders at `base_url`. Satisfies `Running`."""

    base_url: str
    servers: Servers

    @property
    def postgres_url(self) -> str:
        """The database that holds the tables."""
        return self.servers.postgres_url

    def processes(self) -> Mapping[str, int]:
        """Return the pid of each process."""
        return self.servers.processes()


@contextlib.contextmanager
def servers(folder: Path, *, tables: bool = True) -> Iterator[Servers]:
    """Start PostgreSQL with empty data and the tables of tables.sql. Afterwards, kill all and remove the data.

    The logs stay in `folder`/logs. Processes that an earlier, killed run left behind in this folder are ended first.
    Raises BusyError if another process uses the folder, ChildError if PostgreSQL does not start.
    """
    state = StateDir(folder)
    with state.lock():
        if (run := state.read().run) is not None:
            end_leftovers(run.children)
        _remove_data(state)
        pid, taken = os.getpid(), dict[str, int]()
        registry = ProcessRegistry(state, StateRecord(taken, Run(pid, start_time(pid) or "")))
        try:
            running = Servers(state, registry, taken)
            running.data.mkdir(mode=0o700)
            running._start_postgres(tables=tables)
            yield running
        finally:
            registry.close()
            for child in reversed(registry.children):
                child.kill()
            registry.update(lambda record: setattr(record, "run", None))
            _remove_data(state)


def _remove_data(state: StateDir) -> None:
    server_home.remove(state)
    shutil.rmtree(state.root / "data", ignore_errors=True)


def listens(port: int) -> bool:
    """Tell whether something accepts connections on this port of the loopback address."""
    try:
        socket.create_connection((LOOPBACK, port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _ignore(text: str) -> None:
    """Ignore the progress."""
