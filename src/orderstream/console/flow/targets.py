"""The processes that the monitor asks: those of the local stack, or those that CONSOLE_INSTANCES names."""

import socket
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from msgspec import Struct

from orderstream.console.local_stack import LocalStack
from orderstream.local.processes.pids import start_time
from orderstream.settings import SERVICES, Settings

ADDRESSES_SECONDS = 30.0
"""How long the addresses of a host name are used."""
CONSOLE = "console"


class Target(Struct, frozen=True):
    """A process to ask: its service, the name that the overview shows, and the host and port of its pages."""

    service: str
    name: str
    host: str
    port: int
    ended: bool = False
    """Whether the local stack knows that the process has ended."""


Targets = Callable[[], Sequence[Target]]
"""Returns the processes as they are now. May take some seconds. Raises OSError."""


def targets_of(settings: Settings, local: LocalStack | None) -> tuple[Targets, tuple[str, ...]]:
    """Return the processes to ask, and the services that are expected among them."""
    if settings.console_instances:
        named = NamedTargets(settings.console_instances)
        return named, named.services
    if local is None:
        return list, ()
    stack = local
    return lambda: _of_stack(stack), tuple(service for service in SERVICES if settings.replicas(service))


def _of_stack(local: LocalStack) -> list[Target]:
    found = []
    for child in local.children():
        url = urlsplit(child.health_url or "")
        if url.hostname is not None and url.port is not None and not child.name.startswith(CONSOLE):
            ended = start_time(child.pid) != child.start_time
            found.append(Target(service_of(child.name), child.name, url.hostname, url.port, ended))
    return found


def service_of(name: str) -> str:
    """Return the service of a process by its name, for example that of `payment-worker-2`."""
    base, _, number = name.rpartition("-")
    return base if base and number.isdecimal() else name


class NamedTargets:
    """The processes of CONSOLE_INSTANCES. A host name may have several addresses, as replicas in containers have."""

    def __init__(self, instances: str, clock: Callable[[], float] = time.monotonic) -> None:
        pairs = [instance.strip().partition("=") for instance in instances.split(",") if instance.strip()]
        self._named = [(name, urlsplit(url)) for name, _, url in pairs]
        self._clock = clock
        self._found: tuple[Target, ...] = ()
        self._found_at = float("-inf")

    @property
    def services(self) -> tuple[str, ...]:
        """The services that the setting names."""
        return tuple(dict.fromkeys(service_of(name) for name, _ in self._named))

    def __call__(self) -> Sequence[Target]:
        """Return a target for each address of each name."""
        if self._clock() - self._found_at > ADDRESSES_SECONDS:
            self._found = tuple(
                target for name, url in self._named for target in _resolved(name, url.hostname or "", url.port or 80)
            )
            self._found_at = self._clock()
        return self._found


def _resolved(name: str, host: str, port: int) -> list[Target]:
    """Return a target for each address of a host, or one that does not answer if the name is unknown."""
    service = service_of(name)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return [Target(service, name, host, port)]
    addresses = sorted({str(address[0]) for *_, address in found})
    if len(addresses) == 1:
        return [Target(service, name, addresses[0], port)]
    return [Target(service, f"{name} {address}", address, port) for address in addresses]
