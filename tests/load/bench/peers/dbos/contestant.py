"""The contestant DBOS: a library that keeps workflows in PostgreSQL, in an application of two processes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from orderstream.local.processes.service import healthy
from tests.load.bench.peers import venv
from tests.load.bench.peers.servers import LOOPBACK, Application, Program, Servers, servers

HERE = Path(__file__).parent
APPLICATION, SHARED = HERE / "application", HERE.parent / "application"
PINNED = (HERE / "requirements.txt",)
_PROCESSES = 2


class DBOS:
    """A library that keeps workflows and the results of their steps in PostgreSQL."""

    name = "DBOS"
    about = (
        "DBOS 3.4 is a library that keeps each workflow and the result of each step in PostgreSQL. It does more than "
        "OrderStream: it needs no other server, the business is one ordinary function, timers, retries of any step, "
        "messages, queues and schedules come with it, and one backup has everything. It does less: it publishes no "
        "events for other services, cancel, void, cache and the watch for stuck orders are left to the application, "
        "and without Conductor, its paid service, the workflows of a process that died wait until a process with the "
        "same executor id starts."
    )
    in_flight = 32
    connections = 64
    has_java = False

    def install(self) -> None:
        """Install the library into a virtual environment. Raises InstallError."""
        venv.install("dbos", PINNED)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[Application]:
        """Start PostgreSQL and the processes of the application, one after another: the first creates DBOS's tables."""
        home = venv.install("dbos", PINNED)
        with servers(folder) as these:
            base_url = f"http://{LOOPBACK}:{these.port('application')}"
            for number in range(1, _PROCESSES + 1):
                these.start(_application(home, these, number))
            yield Application(base_url, these)


def _application(home: Path, these: Servers, number: int) -> Program:
    port = these.port("application")
    env = {
        "PYTHONPATH": f"{APPLICATION}:{SHARED}",
        "POSTGRES_URL": these.postgres_url,
        "PORT": str(port),
        "EXECUTOR_ID": str(number),
    }
    argv, ready = [venv.program(home), APPLICATION / "main.py"], f"http://{LOOPBACK}:{port}/readyz/{number}"
    return Program(f"application-{number}", argv, lambda: healthy(ready), env)
