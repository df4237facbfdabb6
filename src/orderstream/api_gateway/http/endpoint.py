"""What every route has in common: a span, a `traceresponse` on every reply, problems as JSON, and its two metrics.

An endpoint is a plain ASGI application that answers with one `Reply`; nothing is built that a request does not need.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import Struct
from prometheus_client import Counter, Histogram
from starlette.types import Receive, Scope, Send

from orderstream.api_gateway.http import problems
from orderstream.api_gateway.http.problems import Problem
from orderstream.telemetry import logs, metrics
from orderstream.telemetry.tracing import Span, TraceContext, Tracer

TRACESTATE_MAX_BYTES = 512
"""W3C Trace Context (3.3.1.5) demands no more."""

RequestHeaders = Mapping[bytes, bytes]


class Request(Struct):
    """A request whose head is there; the body comes through `receive`."""

    headers: RequestHeaders
    path_params: Mapping[str, str]
    receive: Receive
    span: Span


class Reply(Struct):
    """A whole answer. `headers` are without content-length and traceresponse."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""


_NOT_MODIFIED = 304
"""Its Content-Length would be that of the answer it stands for (RFC 9110, 8.6): it has none."""

Handler = Callable[[Request], Awaitable[Reply]]


class DisconnectedError(Exception):
    """The client went away before it had sent its request; nobody is there to be answered."""


class Endpoint:
    """Answers the requests of one route, by method, and HEAD as GET. Without any method: 404."""

    def __init__(self, route: str, tracer: Tracer, methods: Mapping[str, Handler]) -> None:
        self._tracer = tracer
        self._methods = {**methods, **({"HEAD": methods["GET"]} if "GET" in methods else {})}
        self._names = {method: f"{method} {route}" for method in self._methods}
        self._route = route
        self._bound: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        headers = _by_name(scope["headers"])
        name = self._names.get(scope["method"], self._route)
        span = self._tracer.server(name, _trace_context(headers))
        reply = await self._reply(Request(headers, scope.get("path_params", {}), receive, span), scope["method"])
        if reply is None:
            span.end("client disconnected")
            return
        if reply.status != _NOT_MODIFIED:
            reply.headers.append((b"content-length", str(len(reply.body)).encode()))
        reply.headers.append((b"traceresponse", (span.context.traceparent or "").encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await send({"type": "http.response.body", "body": reply.body})
        span.set({"http.response.status_code": reply.status})
        span.end(f"HTTP {reply.status}" if reply.status >= 500 else None)
        requests, seconds = self._metrics(name, reply.status)
        requests.inc()
        seconds.observe(time.perf_counter() - started)

    async def _reply(self, request: Request, method: str) -> Reply | None:
        try:
            handler = self._methods.get(method)
            if not self._methods:
                raise problems.not_found("page")
            if handler is None:
                raise problems.method_not_allowed(sorted(self._methods))
            return await handler(request)
        except DisconnectedError:
            return None
        except asyncio.CancelledError:
            # The drain budget is spent, and this task ends with its answer.
            return problem_reply(problems.unavailable("The gateway is stopping."), request.span.trace_id)
        except Problem as problem:
            return problem_reply(problem, request.span.trace_id)
        except Exception as error:  # noqa: BLE001 - a bug in one request is answered and logged, and ends no process
            logs.get().error("request_failed", trace_id=request.span.trace_id, route=self._route, exc_info=error)
            return problem_reply(problems.internal_error(), request.span.trace_id)

    def _metrics(self, name: str, status: int) -> tuple[Counter, Histogram]:
        bound = self._bound.get((name, status))
        if bound is None:
            bound = metrics.HTTP_REQUESTS.labels(name, str(status)), metrics.HTTP_SECONDS.labels(name)
            self._bound[name, status] = bound
        return bound


def problem_reply(problem: Problem, trace_id: str) -> Reply:
    """Return a problem as an answer."""
    return Reply(problem.status, [(b"content-type", problems.CONTENT_TYPE), *problem.headers], problem.body(trace_id))


def _by_name(fields: Sequence[tuple[bytes, bytes]]) -> RequestHeaders:
    """Return the values by name; those of one name that came in several lines are one list (RFC 9110, 5.3)."""
    headers = dict(fields)
    if len(headers) == len(fields):
        return headers
    values: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        values.setdefault(name, []).append(value)
    return {name: b", ".join(lines) for name, lines in values.items()}


def _trace_context(headers: RequestHeaders) -> TraceContext:
    """Return traceparent and tracestate. They are stored with the order, so a long tracestate is dropped."""
    state = _text(headers, b"tracestate")
    if state is not None and len(state) > TRACESTATE_MAX_BYTES:
        state = None
    return TraceContext(_text(headers, b"traceparent"), state)


def _text(headers: RequestHeaders, name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")
