"""OrderStream's own services as child processes of the local stack."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from orderstream.local.processes.child import Child, Command
from orderstream.local.processes.service import InstallContext, healthy
from orderstream.local.processes.start_order import CONSOLE, PAYMENT_SIMULATOR, STOP_GATEWAY, STOP_SERVERS, STOP_WORKERS

# Added to the drain timeout of a service, for the end of its process.
_EXIT_GRACE_SECONDS = 3.0
_FOR_THE_CONSOLE = "CONSOLE_"
# The console yields the processor to the services and the servers.
_NICENESS = {CONSOLE: 5}
# With a fixed threshold, the C library returns more memory of a large batch to the system. The image sets it too.
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072"}
# The workers finish their payments while they stop, so that the simulator stops after them.
_STOP_ORDERS = {"api-gateway": STOP_GATEWAY, PAYMENT_SIMULATOR: STOP_SERVERS}


@dataclass(frozen=True)
class OrderStreamService:
    """One replica of one of orderstream.settings.SERVICES, the payment simulator or the console.

    It is ready when /readyz answers 200.
    """

    name: str
    service: str
    needs: tuple[str, ...]
    health_url: str
    settings_env: Mapping[str, str]
    drain_seconds: float

    def install(self, context: InstallContext) -> None:
        """Do nothing: the service is part of this program."""

    def command(self) -> Command:
        """Return `orderstream <service>`, with the addresses of the servers in its environment.

        OTEL_SERVICE_NAME is left out: with one name for all five, a span would not show its service. The settings of
        the console are left out for the others: they hold its token and its password.
        """
        inherited = {name: value for name, value in os.environ.items() if self._inherits(name)}
        return Command(
            argv=[sys.executable, "-m", "orderstream.cli", self.service],
            env={**_MEMORY, **inherited, "PYTHONUNBUFFERED": "1", "LOG_FORMAT": "json", **self.settings_env},
            cwd=Path.cwd(),
            stop_seconds=self.drain_seconds + _EXIT_GRACE_SECONDS,
            stop_order=_STOP_ORDERS.get(self.service, STOP_WORKERS),
            health_url=self.health_url,
            niceness=_NICENESS.get(self.service, 0),
        )

    def _inherits(self, name: str) -> bool:
        if name == "OTEL_SERVICE_NAME":
            return False
        return self.service == CONSOLE or not name.upper().startswith(_FOR_THE_CONSOLE)

    def ready(self, child: Child) -> bool:
        """Tell whether /readyz answers 200 and this process listens there: another process may have taken the port."""
        port = urlsplit(self.health_url).port
        return port is not None and _listens(child.pid, port) and healthy(self.health_url)


def _listens(pid: int, port: int) -> bool:
    import psutil  # noqa: PLC0415 - slow to load, and a service process never needs it

    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    return any(found.status == psutil.CONN_LISTEN and found.laddr.port == port for found in connections)
