"""What all connections of a server share: their limits, what they hold together, and the application behind them."""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct
from starlette.types import ASGIApp, Scope

from orderstream.api_gateway.http import problems
from orderstream.api_gateway.http.exchange import Exchange
from orderstream.api_gateway.http.problems import Headers, Problem
from orderstream.api_gateway.http.request_head import Fields, Head
from orderstream.api_gateway.http.response import Clock
from orderstream.telemetry import metrics
from orderstream.telemetry.tracing import NO_TRACE, Tracer

READ_MAX_BYTES = 32 * 1024
REQUESTS_MAX_BYTES = 64 << 20
"""Heads, bodies that the application has not taken yet, and answers that clients do not take."""
REFUSED_CONNECTIONS_MAX = 256
"""Connections beyond the limits that are told so; further ones are cut."""
_REFUSED = "unreadable"
"""The route of requests that the server answers itself, in traces and figures."""
_IPV6_PREFIX_BITS = 64
"""One subscriber has a whole network of addresses."""


class Limits(Struct, frozen=True, kw_only=True):
    """The settings of a server."""

    connections: int
    connections_per_peer: int
    request_timeout_seconds: float
    requests_bytes: int = REQUESTS_MAX_BYTES


class Line(Protocol):
    """A connection, as the server sees it."""

    def drain(self) -> None:
        """Finish what has arrived, and close."""

    def stop_work(self) -> None:
        """End what is worked on."""

    def abort(self) -> None:
        """Close at once."""


class EndOfWork(Protocol):
    """Is told when the application is done with an exchange."""

    def __call__(self, exchange: Exchange, *, stopped: bool) -> None:
        """`stopped` if it was cancelled."""


class Shared:
    """One of these for each server."""

    def __init__(self, app: ASGIApp, tracer: Tracer, limits: Limits) -> None:
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.clock = Clock()
        self.read_buffer = memoryview(bytearray(READ_MAX_BYTES))
        self.held_bytes = 0
        self.draining = False
        self.lines: dict[Line, str] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()
        self._app = app
        self._tracer = tracer
        self._peers: Counter[str] = Counter()
        self._refused: set[Line] = set()

    def enter(self, line: Line, address: Sequence[Any] | None) -> Problem | None:
        """Count a new connection. Returns why it is refused, if it is."""
        peer = peer_of(address)
        self.lines[line] = peer
        refusal = None
        if len(self.lines) - len(self._refused) > self.limits.connections:
            refusal = problems.unavailable("Too many connections are open.")
        elif self._peers[peer] >= self.limits.connections_per_peer:
            refusal = problems.unavailable("Too many connections of one address are open.")
        if refusal is None:
            self._peers[peer] += 1
        else:
            self._refused.add(line)
        return refusal

    @property
    def overrun(self) -> bool:
        """More connections are being refused than can be told so."""
        return len(self._refused) > REFUSED_CONNECTIONS_MAX

    def leave(self, line: Line) -> None:
        """Forget a connection."""
        peer = self.lines.pop(line)
        if line in self._refused:
            self._refused.remove(line)
        elif self._peers[peer] > 1:
            self._peers[peer] -= 1
        else:
            del self._peers[peer]
        self.changed.set()

    @property
    def overfull(self) -> bool:
        """The requests that are here hold more than they may together."""
        return self.held_bytes > self.limits.requests_bytes

    def scope(self, head: Head, fields: Fields) -> Scope:
        """Return an ASGI scope."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.http_version,
            "method": head.method,
            "scheme": "http",
            "path": head.path,
            "raw_path": head.raw_path,
            "root_path": "",
            "query_string": head.query,
            "headers": fields,
        }

    def start(self, exchange: Exchange, on_end: EndOfWork) -> "asyncio.Task[None]":
        """Have the application work on a request."""
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

    async def _work(self, scope: Scope, exchange: Exchange) -> None:
        await self._app(scope, exchange.receive, exchange.send)

    def reply(self, problem: Problem) -> tuple[int, Headers, bytes]:
        """Return the answer of the server itself, with a trace of its own, and count it."""
        metrics.HTTP_REQUESTS.labels(_REFUSED, str(problem.status)).inc()
        span = self._tracer.server(_REFUSED, NO_TRACE)
        span.end(problem.name)
        body = problem.body(span.trace_id)
        headers = [
            (b"content-type", problems.CONTENT_TYPE),
            (b"content-length", str(len(body)).encode()),
            (b"traceresponse", (span.context.traceparent or "").encode()),
            *problem.headers,
        ]
        return problem.status, headers, body


def peer_of(address: Sequence[Any] | None) -> str:
    """Return what stands for a client: its IPv4 address, or the network of its IPv6 address."""
    if not address:
        return ""
    host = str(address[0])
    if ":" not in host:
        return host
    ip = ipaddress.IPv6Address(host.partition("%")[0])
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((ip, _IPV6_PREFIX_BITS), strict=False))
