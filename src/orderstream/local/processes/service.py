"""The protocol that every server and service of the local stack implements, and the wait until one is ready."""

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from orderstream.local.processes.child import Child, ChildError, Command, StoppingError
from orderstream.local.processes.ports import LOOPBACK
from orderstream.local.processes.registry import ProcessRegistry
from orderstream.local.processes.state import StateDir

READY_SECONDS = 120.0
_HEALTH_SECONDS = 1.0
_ANSWER_BYTES = 1_000
_READY_POLL_SECONDS = 0.03


@dataclass(frozen=True)
class InstallContext:
    """What a server or service may use in `install`."""

    state: StateDir
    registry: ProcessRegistry
    report: Callable[[str], None]
    cancelled: threading.Event

    def run(self, name: str, command: Command, seconds: float) -> None:
        """Run a short command with its output in the log `name`. Raises ChildError unless it exits with 0 in time."""
        Child(name, self.state.log(name), self.registry).run(command, seconds)


class Service(Protocol):
    """One process of the local stack."""

    @property
    def name(self) -> str:
        """Its name in logs, in the record and on the terminal."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """The steps that must be done before it starts."""
        ...

    def install(self, context: InstallContext) -> None:
        """Prepare the start: files, directories. Idempotent. Needs no network if everything is in place."""
        ...

    def command(self) -> Command:
        """Return the command that starts it."""
        ...

    def ready(self, child: Child) -> bool:
        """Tell whether it serves now. Takes about a second at most and never raises."""
        ...


def await_ready(service: Service, child: Child, cancelled: threading.Event) -> bool:
    """Wait until the service is ready. Return False if its process has ended.

    Raises ChildError if the process runs and is not ready after READY_SECONDS, StoppingError when `cancelled` is set.
    """
    deadline = time.monotonic() + READY_SECONDS
    while not service.ready(child):
        if cancelled.wait(_READY_POLL_SECONDS):
            raise StoppingError
        if not child.alive():
            return False
        if time.monotonic() > deadline:
            raise ChildError(f"{service.name} was not ready after {READY_SECONDS:.0f} s", child.last_lines())
    return True


def healthy(url: str) -> bool:
    """Tell whether GET `url` answers 200 within a second."""
    return problem_at(url) is None


def problem_at(url: str) -> str | None:
    """Return None if GET `url` answers 200 within a second, otherwise the text of the answer or `no answer`.

    The request goes straight to the address. HTTP_PROXY is ignored.
    """
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or LOOPBACK, address.port, timeout=_HEALTH_SECONDS)
    try:
        connection.request("GET", address.path)
        answer = connection.getresponse()
        text = answer.read(_ANSWER_BYTES).decode(errors="replace").strip()
        return None if answer.status == http.client.OK else text or f"status {answer.status}"
    except (OSError, http.client.HTTPException):
        return "no answer"
    finally:
        connection.close()
