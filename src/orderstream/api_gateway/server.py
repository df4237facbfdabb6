"""The HTTP server: uvicorn, with a limit on how long a client may take, and our own socket and signals.

uvicorn waits for ever for the rest of a request. Here a request that has not arrived as a whole in time is answered 408
and its connection closed, however steadily it drips. So does it for a client to take its answers; here no longer.
"""

import asyncio
import contextlib
import functools
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from orderstream.api_gateway import problems
from orderstream.api_gateway.joining import JoiningTransport
from orderstream.api_gateway.problems import Problem
from orderstream.telemetry.tracing import Tracer

HEAD_MAX_BYTES = 64 * 1024
KEEP_ALIVE_SECONDS = 65
BACKLOG = 4_096
OTHER_FILES = 64
"""What a gateway holds open beside its clients' connections: to Postgres, Redis and the collector, and its logs."""


class Protocol(HttpToolsProtocol):
    """One connection. At any time one timer is armed at least, unless a request is being worked on."""

    def __init__(
        self,
        *arguments: object,
        tracer: Tracer,
        request_timeout_seconds: float,
        connection_limit: int,
        **options: object,
    ) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._tracer = tracer
        self._connection_limit = connection_limit
        self._request_timeout_seconds = request_timeout_seconds
        self._request_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self._incomplete = False
        self._field_bytes = 0
        self._progressed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        # Whatever the socket does not take at once pauses writing: closing, too, would wait for it without end.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]
        if len(self.connections) > self._connection_limit:
            self._refuse(problems.unavailable("Too many connections are open."))
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._disarm()
        self._stop_answer_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, then see to it that a timer is armed if more has to come."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._incomplete:
            self._arm()
            self._limit_fields(len(data))
        elif self._is_idle and self.timeout_keep_alive_task is None:
            self._arm()

    def on_message_begin(self) -> None:
        """Give this request its own time."""
        super().on_message_begin()
        self._disarm()
        self._incomplete = True
        self._field_bytes = 0
        self._progressed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; one that follows the body is of no use to anyone here."""
        if not self._has_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._progressed = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there as a whole."""
        self._disarm()
        self._incomplete = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not take its answer: it has as long as for a request."""
        super().pause_writing()
        if self._answer_timer is None:
            self._answer_timer = self.loop.call_later(self._request_timeout_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has taken all of it."""
        self._stop_answer_timer()
        super().resume_writing()

    def shutdown(self) -> None:
        """Finish what is being worked on; a request that has not arrived yet is not waited for."""
        if self._incomplete:
            self.transport.close()
        else:
            super().shutdown()

    def send_400_response(self, _message: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(problems.malformed_request())

    def _unsupported_upgrade_warning(self) -> None:
        # After an upgrade was offered the parser reads no further request: answer this one, as plain HTTP, and close.
        if self._is_idle:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]

    @property
    def _has_head(self) -> bool:
        return self.cycle is not None and self.cycle.scope is self.scope  # type: ignore[redundant-expr]

    def _arm(self) -> None:
        if self._request_timer is None:
            self._request_timer = self.loop.call_later(self._request_timeout_seconds, self._time_out)

    def _disarm(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _stop_answer_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _limit_fields(self, received_bytes: int) -> None:
        """Count what is not body: the head, what frames the pieces of a chunked body, the fields that follow it."""
        self._field_bytes = 0 if self._progressed else self._field_bytes + received_bytes
        self._progressed = False
        if self._field_bytes > HEAD_MAX_BYTES:
            self._refuse(problems.head_too_large(HEAD_MAX_BYTES))

    def _time_out(self) -> None:
        self._request_timer = None
        if self._incomplete:
            self._refuse(problems.request_timeout(self._request_timeout_seconds))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answer in the application's stead, unless it has begun to, and close."""
        if not self.transport.is_closing() and (self._is_idle or not self.cycle.response_started):
            span = self._tracer.server("unreadable", (None, None))
            span.end(problem.name)
            body = problem.body(span.trace_id)
            head = [
                *self.server_state.default_headers,
                (b"content-type", problems.CONTENT_TYPE),
                (b"content-length", str(len(body)).encode()),
                (b"traceresponse", (span.carrier[0] or "").encode()),
                (b"connection", b"close"),
                *problem.headers,
            ]
            lines = b"".join(b"%b: %b\r\n" % field for field in head)
            self.transport.write(STATUS_LINE[problem.status] + lines + b"\r\n" + body)
        self.transport.close()


class Server(uvicorn.Server):
    """Drains on SIGTERM or SIGINT and returns, where uvicorn would end itself by the signal; a second one forces.

    `on_stop` is called as soon as it is told to.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to the signals while the server runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_stop()


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
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limit + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(limit, soft - OTHER_FILES))
    return limit


def server(
    app: ASGIApp,
    tracer: Tracer,
    *,
    on_stop: Callable[[], None],
    connection_limit: int,
    request_timeout_seconds: float,
    drain_timeout_seconds: float,
) -> Server:
    """Return a server of `app` that is yet to be started, with sockets of the caller's."""
    protocol = functools.partial(
        Protocol,
        tracer=tracer,
        request_timeout_seconds=request_timeout_seconds,
        connection_limit=connection_limit,
    )
    config = uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_timeout_seconds,  # type: ignore[arg-type]
    )
    return Server(config, on_stop)
