"""What all routes share: a span, a `traceresponse` field, problems as JSON, and two metrics.

An endpoint is a plain ASGI application. It sends one `Response` and builds nothing that a request does not need.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import Struct
from prometheus_client import Counter, Histogram
from starlette.types import Receive, Scope, Send

from orderstream.http_server import problems
from orderstream.http_server.problems import Problem
from orderstream.telemetry import logs, metrics
from orderstream.telemetry.tracing import Span, TraceContext, Tracer

TRACESTATE_MAX_BYTES = 512
"""W3C Trace Context (3.3.1.5) requires no more."""

RequestHeaders = Mapping[bytes, bytes]


class Request(Struct):
    """A request whose head has arrived. The body comes through `receive`."""

    headers: RequestHeaders
    path_params: Mapping[str, str]
    receive: Receive
    span: Span


class Response(Struct):
    """A whole response. The endpoint adds content-length and traceresponse to `headers`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""


_NOT_MODIFIED = 304
"""A 304 has no Content-Length: it would have to be that of the unsent 200 (RFC 9110, 8.6)."""

Handler = Callable[[Request], Awaitable[Response]]


class DisconnectedError(Exception):
    """The client disconnected before it had sent its whole request. There is no response."""


class Endpoint:
    """Answers the requests of one route, by method. HEAD is handled as GET. A route without methods answers 404."""

    def __init__(self, route: str, tracer: Tracer, methods: Mapping[str, Handler]) -> None:
        self._tracer = tracer
        self._methods = {**methods, **({"HEAD": methods["GET"]} if "GET" in methods else {})}
        self._names = {method: f"{method} {route}" for method in self._methods}
        self._route = route
        self._labelled_metrics: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        started = time.perf_counter()
        headers = _by_name(scope["headers"])
        name = self._names.get(scope["method"], self._route)
        span = self._tracer.server(name, _trace_context(headers))
        request = Request(headers, scope.get("path_params", {}), receive, span)
        response = await self._respond(request, scope["method"])
        if response is None:
            span.end("client disconnected")
            return
        if response.status != _NOT_MODIFIED:
            response.headers.append((b"content-length", str(len(response.body)).encode()))
        response.headers.append((b"traceresponse", (span.context.traceparent or "").encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        await send({"type": "http.response.body", "body": response.body})
        span.set({"http.response.status_code": response.status})
        span.end(f"HTTP {response.status}" if response.status >= 500 else None)
        requests, seconds = self._metrics(name, response.status)
        requests.inc()
        seconds.observe(time.perf_counter() - started)

    async def _respond(self, request: Request, method: str) -> Response | None:
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
            # The drain timeout has passed. The server cancels this task, which still sends a response.
            return problem_response(problems.unavailable("The gateway is stopping."), request.span.trace_id)
        except Problem as problem:
            return problem_response(problem, request.span.trace_id)
        except Exception as error:  # noqa: BLE001 - a bug in one request must not end the process
            logs.get().error("request_failed", trace_id=request.span.trace_id, route=self._route, exc_info=error)
            return problem_response(problems.internal_error(), request.span.trace_id)

    def _metrics(self, name: str, status: int) -> tuple[Counter, Histogram]:
        labelled = self._labelled_metrics.get((name, status))
        if labelled is None:
            labelled = metrics.HTTP_REQUESTS.labels(name, str(status)), metrics.HTTP_SECONDS.labels(name)
            self._labelled_metrics[name, status] = labelled
        return labelled


def problem_response(problem: Problem, trace_id: str) -> Response:
    """Return a problem as a response."""
    return Response(
        problem.status, [(b"content-type", problems.CONTENT_TYPE), *problem.headers], problem.body(trace_id)
    )


def _by_name(fields: Sequence[tuple[bytes, bytes]]) -> RequestHeaders:
    """Return the field values by name. Several lines with one name become one list (RFC 9110, 5.3)."""
    headers = dict(fields)
    if len(headers) == len(fields):
        return headers
    values: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        values.setdefault(name, []).append(value)
    return {name: b", ".join(lines) for name, lines in values.items()}


def _trace_context(headers: RequestHeaders) -> TraceContext:
    """Return traceparent and tracestate. A long tracestate is dropped, because it is stored with the order."""
    state = _text(headers, b"tracestate")
    if state is not None and len(state) > TRACESTATE_MAX_BYTES:
        state = None
    return TraceContext(_text(headers, b"traceparent"), state)


def _text(headers: RequestHeaders, name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")
