"""A local stack for a test or a measurement: the real executable, with its own state directory and port.

The end-to-end tests, the benchmarks and the soak all start their system with this module.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orderstream.local.processes.pids import start_time
from orderstream.local.processes.service import healthy
from orderstream.local.processes.state import ChildRecord, Run, StateDir
from orderstream.local.servers import server_home
from orderstream.local.servers.passwords import read
from orderstream.local.servers.postgres import superuser_url
from orderstream.local.stack_settings import stack_addresses
from orderstream.settings import SERVICES, Settings
from tests.support.processes import Process
from tests.support.waiting import wait_until

EXECUTABLE = Path(sys.executable).with_name("orderstream")
# Generous limits: the machine may be busy.
START_SECONDS = 180.0
STOP_SECONDS = 60.0
RESTART_SECONDS = 60.0
_NOT_INHERITED = {"POSTGRES_URL", "REDIS_URL", "KAFKA_BROKERS", "KAFKA_OPTIONS", "OTEL_EXPORTER_OTLP_ENDPOINT"}


def free_port() -> int:
    """Return a port on which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Up:
    """A running `orderstream up` and its output."""

    def __init__(self, argv: list[str], environment: Mapping[str, str]) -> None:
        self.process = Process(
            argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._lines.put(line)

    @property
    def said(self) -> str:
        """All output until now."""
        while not self._lines.empty():
            self._said += self._lines.get()
        return self._said

    @property
    def serving(self) -> bool:
        """Whether it has printed its banner, is not stopping, and still runs."""
        return "# Read it back" in self.said and "\nStopping" not in self.said and self.process.poll() is None

    def says(self, text: str, limit_seconds: float = START_SECONDS) -> str:
        """Wait until it has printed `text`, and return all output."""
        wait_until(lambda: text in self.said or self.process.poll() is not None, limit_seconds, f"`up` prints {text!r}")
        self._read_to_end()
        assert text in self.said, f"it ended with {self.process.poll()} and had printed:\n{self.said}"
        return self.said

    def serves(self) -> "Up":
        """Wait for the banner."""
        self.says("# Read it back")
        return self

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def ends(self, limit_seconds: float = STOP_SECONDS) -> int:
        """Wait for its end and return the exit code."""
        code = self.process.ends(limit_seconds)
        self._read_to_end()
        return code

    def _read_to_end(self) -> None:
        if self.process.poll() is not None:
            self._reader.join(10)


class System:
    """One state directory and port, and the commands on them. Nothing runs until `up` is called."""

    def __init__(self, state_dir: Path, executable: list[str] | None = None) -> None:
        self.state = StateDir(state_dir)
        self.port = free_port()
        self.console_port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._executable = executable or [str(EXECUTABLE)]
        self._ups: list[Up] = []

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a command: that of this process, without addresses of servers, and `settings`.

        The console does not run, unless `settings` ask for it.
        """
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        return {
            **inherited,
            "ORDERSTREAM_STATE": str(self.state.root),
            "PORT": str(self.port),
            "CONSOLE_PORT": str(self.console_port),
            "REPLICAS_CONSOLE": "0",
            **settings,
        }

    def up(self, **settings: str) -> Up:
        """Start `orderstream up`."""
        started = Up([*self._executable, "up"], self.environment(settings))
        self._ups.append(started)
        return started

    def run(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run another command to its end. Any exit code is allowed."""
        return subprocess.run(
            [*self._executable, *arguments],
            env=self.environment(settings),
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )

    def command(self, *arguments: str, **settings: str) -> str:
        """Run a command that must exit with 0, and return its output."""
        done = self.run(*arguments, **settings)
        assert done.returncode == 0, f"orderstream {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def end(self) -> None:
        """Stop with `orderstream down`. It and every `up` must exit with 0 in time."""
        self.command("down")
        assert [up.ends() for up in self._ups] == [0] * len(self._ups), "`up` did not end in order"

    def stop(self) -> None:
        """End every `up` that this object started, also after a failure."""
        for up in self._ups:
            if up.process.poll() is None:
                up.interrupt()
                try:
                    up.ends()
                except subprocess.TimeoutExpired:
                    up.process.kill()
            up.ends()
        self.run("down")

    @property
    def running(self) -> Up | None:
        """The `up` of this system that serves now."""
        return next((up for up in self._ups if up.serving), None)

    @property
    def urls(self) -> dict[str, str]:
        """POSTGRES_URL, REDIS_URL, KAFKA_BROKERS, KAFKA_OPTIONS and BASE_URL. The system must be running."""
        return self._run_record().urls

    @property
    def settings(self) -> Settings:
        """Settings with the addresses of this system."""
        return Settings.model_validate(stack_addresses(self.urls))

    @property
    def superuser_url(self) -> str:
        """The URL of PostgreSQL's superuser, for actions that the services must not do."""
        passwords = read(self.state)
        assert passwords is not None, "the system has no passwords"
        return superuser_url(self.state.read().ports["postgres"], passwords)

    @property
    def postgres_data(self) -> Path:
        """The data directory of PostgreSQL."""
        return server_home.of(self.state).postgres_data

    @property
    def kafka_data(self) -> Path:
        """The data directory of Kafka."""
        return server_home.of(self.state).folder("kafka") / "data"

    @property
    def children(self) -> dict[str, ChildRecord]:
        """The processes in the state record, by name."""
        run = self.state.read().run
        return {child.name: child for child in run.children} if run else {}

    @property
    def pids(self) -> dict[str, int]:
        """The pids in the state record, by name."""
        return {name: child.pid for name, child in self.children.items()}

    def pid(self, name: str) -> int:
        """Return the pid of a process, which must run now."""
        child = self.children[name]
        assert is_alive(child), f"{name} does not run"
        return child.pid

    def await_restart(self, *names: str) -> None:
        """Wait until these processes run. The supervisor may be restarting one of them."""

        def run() -> bool:
            children = [self.children.get(name) for name in names]
            return all(child is not None and is_alive(child) for child in children)

        wait_until(run, RESTART_SECONDS, f"{', '.join(names)} run")

    def service_pids(self) -> dict[str, int]:
        """Return the pids of all recorded replicas of the five services, by name."""
        return {name: child.pid for name, child in self.children.items() if name.startswith(SERVICES)}

    def is_back(self, name: str, before: int) -> bool:
        """Say whether a process other than the pid `before` now runs under this name."""
        child = self.children.get(name)
        return child is not None and child.pid != before and is_alive(child)

    def is_ready(self, name: str) -> bool:
        """Say whether the /readyz of a service answers 200."""
        child = self.children.get(name)
        return child is not None and child.health_url is not None and healthy(child.health_url)

    def _run_record(self) -> Run:
        run = self.state.running()
        assert run is not None, "the system does not run any more"
        return run


def is_alive(child: ChildRecord) -> bool:
    """Say whether this very process still runs."""
    return start_time(child.pid) == child.start_time


def alive(children: Mapping[str, ChildRecord]) -> list[str]:
    """Return the names of the processes that still run."""
    return [name for name, child in children.items() if is_alive(child)]


@contextmanager
def system(root: Path, executable: list[str] | None = None) -> Iterator[System]:
    """Yield a system whose state is under `root`. Afterwards it is stopped and its data removed."""
    created = System(root / "state", executable)
    try:
        yield created
    finally:
        created.stop()
        created.run("reset")
