"""The HTTP server: its socket, its signals, and a graceful stop."""

import asyncio
import resource
import signal
import socket
from collections.abc import Callable

from starlette.types import ASGIApp

from orderstream.http_server.connection import DRAIN_LINGER_SECONDS, Connection
from orderstream.http_server.problems import Headers
from orderstream.http_server.server_state import REFUSED_CONNECTIONS_MAX, Limits, ServerState
from orderstream.telemetry.tracing import Tracer

BACKLOG = 4_096
OTHER_FILES = 64
"""File descriptors beside the client connections: for Postgres, Redis, the trace collector and the logs."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """Serves until SIGTERM or SIGINT, then drains. A second signal ends the drain at once.

    The server calls `on_stop` when the first signal arrives. It adds `headers` to the answers that it gives itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        tracer: Tracer,
        limits: Limits,
        *,
        on_stop: Callable[[], None],
        drain_timeout_seconds: float,
        headers: Headers = (),
    ) -> None:
        self._app = app
        self._tracer = tracer
        self._limits = limits
        self._on_stop = on_stop
        self._drain_timeout_seconds = drain_timeout_seconds
        self._headers = headers
        self._stopping = asyncio.Event()
        self._forced = False

    async def serve(self, listener: socket.socket) -> None:
        """Serve on a listening socket until a signal arrives and the drain is over."""
        loop = asyncio.get_running_loop()
        state = ServerState(self._app, self._tracer, self._limits, self._headers)
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop, state)
        try:
            server = await loop.create_server(lambda: Connection(state), sock=listener, backlog=BACKLOG)
            await self._stopping.wait()
            server.close()
            await self._drain(state)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _stop(self, state: ServerState) -> None:
        self._forced = self._stopping.is_set()
        self._stopping.set()
        state.changed.set()
        if not self._forced:
            self._on_stop()

    async def _drain(self, state: ServerState) -> None:
        state.draining = True
        for connection in list(state.connections):
            connection.drain()
        if not await self._finished(state, self._drain_timeout_seconds):
            for connection in list(state.connections):
                connection.stop_work()
            await self._finished(state, 2 * DRAIN_LINGER_SECONDS)
        for connection in list(state.connections):
            connection.abort()

    async def _finished(self, state: ServerState, seconds: float) -> bool:
        """Wait until all connections are closed and all requests are done.

        Return False if `seconds` pass before, or if a second signal arrives.
        """
        try:
            async with asyncio.timeout(seconds):
                while (state.connections or state.tasks) and not self._forced:
                    state.changed.clear()
                    await state.changed.wait()
        except TimeoutError:
            return False
        return not self._forced


def listen(host: str, port: int, *, shared: bool = True) -> socket.socket:
    """Open a listening socket. With `shared`, several processes can listen on the port. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def allow_connections(limit: int) -> int:
    """Raise the process's limit of file descriptors, if possible, so that `limit` connections fit.

    Return the number of connections that fit.
    """
    others = OTHER_FILES + REFUSED_CONNECTIONS_MAX
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limit + others
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(limit, soft - others))
    return limit
