"""The state that all connections of a server share: limits, counts, memory, and the application behind them."""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct
from starlette.types import ASGIApp, Scope

from orderstream.http_server import problems
from orderstream.http_server.exchange import Exchange
from orderstream.http_server.problems import Headers, Problem
from orderstream.http_server.response_head import DateField
from orderstream.telemetry import metrics
from orderstream.telemetry.tracing import NO_TRACE, Tracer

READ_MAX_BYTES = 32 * 1024
REQUESTS_MAX_BYTES = 64 << 20
"""Memory for heads, for body bytes that the application has not taken, and for responses that clients do not take."""
REFUSED_CONNECTIONS_MAX = 256
"""Refused connections that get a 503. The server aborts further ones without a response."""
_REFUSED = "unreadable"
"""The route of requests that the server answers itself, in traces and metrics."""
_IPV6_PREFIX_BITS = 64
"""An IPv6 subscriber has a whole network of addresses, which counts as one peer."""


class Limits(Struct, frozen=True, kw_only=True):
    """The limits of a server."""

    connections: int
    connections_per_peer: int
    request_timeout_seconds: float
    requests_bytes: int = REQUESTS_MAX_BYTES


class OpenConnection(Protocol):
    """The part of a connection that the server needs to stop."""

    def drain(self) -> None:
        """Answer the requests that have arrived, then close."""

    def stop_work(self) -> None:
        """Cancel the request that the application works on."""

    def abort(self) -> None:
        """Close at once."""


class OnWorkEnd(Protocol):
    """Called when the application has ended its work on an exchange."""

    def __call__(self, exchange: Exchange, *, stopped: bool) -> None:
        """Continue after the work on `exchange`. `stopped` is true if the work was cancelled."""


class ServerState:
    """The shared state of one server."""

    def __init__(self, app: ASGIApp, tracer: Tracer, limits: Limits, headers: Headers = ()) -> None:
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.date_field = DateField()
        self.read_buffer = memoryview(bytearray(READ_MAX_BYTES))
        self.held_bytes = 0
        """Memory that counts towards `limits.requests_bytes`."""
        self.draining = False
        self.connections: dict[OpenConnection, str] = {}
        """The open connections, each with its peer."""
        self.tasks: set[asyncio.Task[None]] = set()
        """The requests that the application works on."""
        self.changed = asyncio.Event()
        """Set when a connection closes or the last task ends."""
        self._headers = headers
        self._app = app
        self._tracer = tracer
        self._peers: Counter[str] = Counter()
        self._refused: set[OpenConnection] = set()
        self._writes: list[Callable[[], None]] = []

    def enter(self, connection: OpenConnection, address: Sequence[Any] | None) -> Problem | None:
        """Count a new connection. Return the reason if it is refused."""
        peer = peer_of(address)
        self.connections[connection] = peer
        refusal = None
        if len(self.connections) - len(self._refused) > self.limits.connections:
            refusal = problems.unavailable("Too many connections are open.")
        elif self._peers[peer] >= self.limits.connections_per_peer:
            refusal = problems.unavailable("Too many connections from one address are open.")
        if refusal is None:
            self._peers[peer] += 1
        else:
            self._refused.add(connection)
        return refusal

    @property
    def too_many_refused(self) -> bool:
        """Whether there are too many refused connections to answer another one."""
        return len(self._refused) > REFUSED_CONNECTIONS_MAX

    def leave(self, connection: OpenConnection) -> None:
        """Stop counting a connection."""
        peer = self.connections.pop(connection)
        if connection in self._refused:
            self._refused.remove(connection)
        elif self._peers[peer] > 1:
            self._peers[peer] -= 1
        else:
            del self._peers[peer]
        self.changed.set()

    @property
    def overfull(self) -> bool:
        """Whether the requests hold more memory than they may."""
        return self.held_bytes > self.limits.requests_bytes

    def start(self, exchange: Exchange, on_end: OnWorkEnd) -> "asyncio.Task[None]":
        """Start the application's work on a request."""
        assert exchange.scope is not None
        task = self.loop.create_task(self._work(exchange.scope, exchange))

        def end(task: "asyncio.Task[None]") -> None:
            self.tasks.discard(task)
            if not self.tasks:
                self.changed.set()
            on_end(exchange, stopped=task.cancelled())

        self.tasks.add(task)
        task.add_done_callback(end)
        return task

    def write_soon(self, write: Callable[[], None]) -> None:
        """Call `write` in the next round of the event loop, together with those of other connections."""
        if not self._writes:
            self.loop.call_soon(self._write_all)
        self._writes.append(write)

    def _write_all(self) -> None:
        writes, self._writes = self._writes, []
        for write in writes:
            write()

    async def _work(self, scope: Scope, exchange: Exchange) -> None:
        await self._app(scope, exchange.receive, exchange.send)

    def problem_response(self, problem: Problem) -> tuple[int, Headers, bytes]:
        """Return the server's own response, with a trace of its own, and count it."""
        metrics.HTTP_REQUESTS.labels(_REFUSED, str(problem.status)).inc()
        span = self._tracer.server(_REFUSED, NO_TRACE)
        span.end(problem.name)
        body = problem.body(span.trace_id)
        headers = [
            (b"content-type", problems.CONTENT_TYPE),
            (b"content-length", str(len(body)).encode()),
            (b"traceresponse", (span.context.traceparent or "").encode()),
            *problem.headers,
            *self._headers,
        ]
        return problem.status, headers, body


def peer_of(address: Sequence[Any] | None) -> str:
    """Return the peer of a socket address: the IPv4 address, or the network of the IPv6 address."""
    if not address:
        return ""
    host = str(address[0])
    if ":" not in host:
        return host
    ip = ipaddress.IPv6Address(host.partition("%")[0])
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((ip, _IPV6_PREFIX_BITS), strict=False))
