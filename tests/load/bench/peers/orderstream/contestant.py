"""OrderStream as a contestant: a stack of its own with the default settings, without the console."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.load.system import exclusive_system
from tests.support.system import System


@dataclass(frozen=True)
class RunningOrderStream:
    """The stack."""

    system: System

    @property
    def base_url(self) -> str:
        """Where `POST /orders` is."""
        return self.system.urls["BASE_URL"]

    @property
    def postgres_url(self) -> str:
        """The database of the services."""
        return self.system.urls["POSTGRES_URL"]

    def processes(self) -> Mapping[str, int]:
        """Return the pid of each process that `orderstream up` started."""
        return self.system.pids


class OrderStream:
    """The services with PostgreSQL, Kafka and Valkey. The simulated payment provider answers at once."""

    name = "OrderStream"
    in_flight = None
    connections = 512
    has_java = True
    about = (
        "The default settings. The five services refuse no work that the others do, and also cancel, compensate, time"
        " out, cache, publish every event and keep an outbox."
    )

    def install(self) -> None:
        """Do nothing: `orderstream up` fetches its servers at its first start."""

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[RunningOrderStream]:
        """Start a stack with empty data."""
        with exclusive_system(folder) as system:
            yield RunningOrderStream(system)
