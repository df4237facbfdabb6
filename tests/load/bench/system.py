"""A whole OrderStream of a measurement's own, started by the real executable, on a port and with state of its own."""

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orderstream.local.processes.state import ChildRecord, Run, StateDir, checkout
from orderstream.local.servers.passwords import read
from orderstream.local.servers.postgres import superuser_url
from orderstream.local.stack_settings import stack_addresses
from orderstream.settings import Settings

PROGRAM = str(Path(sys.executable).with_name("orderstream"))
LIMIT_SECONDS = 300
_LOCATIONS = ("POSTGRES_URL", "REDIS_URL", "KAFKA_BROKERS", "KAFKA_OPTIONS", "OTEL_EXPORTER_OTLP_ENDPOINT")


class System:
    """The running system: where it is, and which processes it consists of."""

    def __init__(self, state: StateDir, environment: dict[str, str]) -> None:
        self.state = state
        self._environment = environment

    @property
    def urls(self) -> dict[str, str]:
        """POSTGRES_URL, REDIS_URL, KAFKA_BROKERS, KAFKA_OPTIONS and BASE_URL."""
        return self._run().urls

    @property
    def settings(self) -> Settings:
        """Settings that lead to the parts of this system."""
        return Settings.model_validate(stack_addresses(self.urls))

    @property
    def superuser_url(self) -> str:
        """PostgreSQL for what the services may not do, such as settings of the whole server."""
        passwords = read(self.state)
        if passwords is None:
            raise RuntimeError("the system under test has no passwords")
        return superuser_url(self.state.read().ports["postgres"], passwords)

    def children(self) -> list[ChildRecord]:
        """Every process that the stack started and keeps alive."""
        return self._run().children

    def _run(self) -> Run:
        run = self.state.running()
        if run is None:
            raise RuntimeError("the system under test is not running any more")
        return run

    def command(self, *arguments: str) -> None:
        """Run `orderstream <arguments>` against this system; what it says goes to stderr.

        Raises subprocess.SubprocessError when it fails.
        """
        subprocess.run(
            [PROGRAM, *arguments], check=True, env=self._environment, timeout=LIMIT_SECONDS, stdout=sys.stderr
        )


class AlreadyRunningError(Exception):
    """Another run is under way in this directory; the two would only measure each other."""


@contextmanager
def running(root: Path | None = None, **settings: str) -> Iterator[System]:
    """Start a fresh system, and remove it with all of its data afterwards; after a failure its logs are kept.

    Its state is under `root`, or under .orderstream of the checkout. Raises AlreadyRunningError.
    """
    state = StateDir(root or checkout() / ".orderstream" / "bench")
    state.open()
    with (state.root / "benchmark.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(f"another one runs on {state.root}") from None
        with _started(state, settings) as system:
            yield system


@contextmanager
def _started(state: StateDir, settings: Mapping[str, str]) -> Iterator[System]:
    environment = {name: value for name, value in os.environ.items() if name not in _LOCATIONS}
    environment |= {"ORDERSTREAM_STATE": str(state.root), "PORT": str(_free_port()), **settings}
    system = System(state, environment)
    system.command("down")
    system.command("reset")
    try:
        system.command("up", "--detach")
        yield system
    except BaseException:
        system.command("down")
        print(f"The logs are kept in {state.logs}", file=sys.stderr)
        raise
    system.command("down")
    system.command("reset")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
