"""Runs the HTTP server in this process, on the event loop that the gateway uses, with an application of the test."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from orderstream.http_server.connection import Connection
from orderstream.http_server.server_state import Limits, ServerState
from orderstream.telemetry.tracing import Tracer

LIMIT_SECONDS = 20
PAUSE_SECONDS = 0.005


class RunningServer:
    """A server that listens on `port`, with its state."""

    def __init__(self, state: ServerState, port: int) -> None:
        self.state = state
        self.port = port
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def connection(self) -> Connection:
        """The server's side of the only connection."""
        (connection,) = self.state.connections
        assert isinstance(connection, Connection)
        return connection

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the server."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        """Close all connections from both sides."""
        for writer in self._writers:
            writer.transport.abort()
        for connection in list(self.state.connections):
            connection.abort()
        for task in self.state.tasks:
            task.cancel()
        await until(lambda: not self.state.connections and not self.state.tasks, "everything is closed")


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, **limits: Any) -> AsyncIterator[RunningServer]:
    """Serve an application on a free port. At the end, check that its count of held bytes is 0."""
    defaults = {"connections": 100, "connections_per_peer": 100, "request_timeout_seconds": 20.0}
    state = ServerState(app, Tracer(None, 0), Limits(**(defaults | limits)))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(state), "127.0.0.1", 0)
    running = RunningServer(state, server.sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        server.close()
        await running.close()
        await asyncio.sleep(0)
    assert state.held_bytes == 0


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on the event loop that the gateway uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def until(condition: Callable[[], object], description: str) -> None:
    """Wait until the condition is true. Fail with the description after LIMIT_SECONDS."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not true within {LIMIT_SECONDS} s: {description}"
        await asyncio.sleep(PAUSE_SECONDS)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Return all bytes until the server closes the connection."""
    async with asyncio.timeout(LIMIT_SECONDS):
        return await reader.read()


class HeldApp:
    """An application that reads each request, waits for `go`, and responds with the request's path."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        self.paths.append(scope["path"])
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
        if message["type"] == "http.disconnect":
            return
        await self.go.wait()
        await respond(send, 200, scope["path"].encode())


async def respond(send: Send, status: int, body: bytes) -> None:
    """Send a response."""
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
