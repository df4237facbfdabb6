"""The HTTP server: its socket, its signals, and a stop that finishes what is under way."""

import asyncio
import resource
import signal
import socket
from collections.abc import Callable

from starlette.types import ASGIApp

from orderstream.api_gateway.http.connection import DRAIN_LINGER_SECONDS, Connection
from orderstream.api_gateway.http.server_state import REFUSED_CONNECTIONS_MAX, Limits, Shared
from orderstream.telemetry.tracing import Tracer

BACKLOG = 4_096
OTHER_FILES = 64
"""What a gateway holds open beside its clients' connections: to Postgres, Redis and the collector, and its logs."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """Drains on SIGTERM or SIGINT and returns; a second one forces. `on_stop` is called as soon as it is told to."""

    def __init__(
        self,
        app: ASGIApp,
        tracer: Tracer,
        limits: Limits,
        *,
        on_stop: Callable[[], None],
        drain_timeout_seconds: float,
    ) -> None:
        self._app = app
        self._tracer = tracer
        self._limits = limits
        self._on_stop = on_stop
        self._drain_timeout_seconds = drain_timeout_seconds
        self._stopping = asyncio.Event()
        self._forced = False

    async def serve(self, listener: socket.socket) -> None:
        """Serve on a socket that listens, until told to stop and drained."""
        loop = asyncio.get_running_loop()
        shared = Shared(self._app, self._tracer, self._limits)
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop, shared)
        try:
            server = await loop.create_server(lambda: Connection(shared), sock=listener, backlog=BACKLOG)
            await self._stopping.wait()
            server.close()
            await self._drain(shared)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _stop(self, shared: Shared) -> None:
        self._forced = self._stopping.is_set()
        self._stopping.set()
        shared.changed.set()
        if not self._forced:
            self._on_stop()

    async def _drain(self, shared: Shared) -> None:
        shared.draining = True
        for line in list(shared.lines):
            line.drain()
        if not await self._finished(shared, self._drain_timeout_seconds):
            for line in list(shared.lines):
                line.stop_work()
            await self._finished(shared, 2 * DRAIN_LINGER_SECONDS)
        for line in list(shared.lines):
            line.abort()

    async def _finished(self, shared: Shared, seconds: float) -> bool:
        """Wait until no connection is open and nothing is worked on. False if it takes longer, or is forced."""
        try:
            async with asyncio.timeout(seconds):
                while (shared.lines or shared.tasks) and not self._forced:
                    shared.changed.clear()
                    await shared.changed.wait()
        except TimeoutError:
            return False
        return not self._forced


def listen(host: str, port: int) -> socket.socket:
    """Open the API's socket so that replicas share the port. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def allow_connections(limit: int) -> int:
    """Have the process allowed as many file descriptors as `limit` connections take, if that is in its power.

    Returns how many connections there may be.
    """
    others = OTHER_FILES + REFUSED_CONNECTIONS_MAX
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limit + others
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(limit, soft - others))
    return limit
