"""The HTTP server in this process, on the gateway's event loop, with an application of the test's own behind it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from orderstream.api_gateway.http.connection import Connection
from orderstream.api_gateway.http.server_state import Limits, Shared
from orderstream.telemetry.tracing import Tracer

LIMIT_SECONDS = 20
PAUSE_SECONDS = 0.005


class Served:
    """A running server."""

    def __init__(self, shared: Shared, port: int) -> None:
        self.shared = shared
        self.port = port
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def connection(self) -> Connection:
        """The only connection."""
        (connection,) = self.shared.lines
        assert isinstance(connection, Connection)
        return connection

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        """Close all connections, from both sides."""
        for writer in self._writers:
            writer.transport.abort()
        for line in list(self.shared.lines):
            line.abort()
        for task in self.shared.tasks:
            task.cancel()
        await until(lambda: not self.shared.lines and not self.shared.tasks, "all is closed")


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, **limits: Any) -> AsyncIterator[Served]:
    """Serve an application on a free port."""
    given = {"connections": 100, "connections_per_peer": 100, "request_timeout_seconds": 20.0} | limits
    shared = Shared(app, Tracer(None, 0), Limits(**given))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(shared), "127.0.0.1", 0)
    served = Served(shared, server.sockets[0].getsockname()[1])
    try:
        yield served
    finally:
        server.close()
        await served.close()
        await asyncio.sleep(0)
    assert shared.held_bytes == 0


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test on the event loop that the gateway has."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {LIMIT_SECONDS} s in vain: {what}"
        await asyncio.sleep(PAUSE_SECONDS)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the other side closes."""
    async with asyncio.timeout(LIMIT_SECONDS):
        return await reader.read()


class Held:
    """An application that answers the path of each request, once it may."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        self.paths.append(scope["path"])
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
        if message["type"] == "http.disconnect":
            return
        await self.go.wait()
        await answer(send, 200, scope["path"].encode())


async def answer(send: Send, status: int, body: bytes) -> None:
    """Answer a request."""
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
