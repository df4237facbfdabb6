"""One client connection, as an asyncio protocol: when to read, when to respond, and when to close.

The parser turns bytes into requests. The pipeline works on one request after the other. The transport writes.
"""

import asyncio

from orderstream.http_server import problems
from orderstream.http_server.deadline import Deadline
from orderstream.http_server.exchange import Exchange, asgi_scope
from orderstream.http_server.pipeline import Pipeline
from orderstream.http_server.problems import Headers, Problem
from orderstream.http_server.request_head import Fields, RequestHead
from orderstream.http_server.request_parser import RequestParser
from orderstream.http_server.response_head import response_head
from orderstream.http_server.server_state import READ_MAX_BYTES, ServerState
from orderstream.http_server.transport import ClientTransport

KEEP_ALIVE_SECONDS = 65
QUEUED_REQUESTS_MAX = 16
BODY_BUFFER_MAX_BYTES = 64 * 1024
DISCARD_MAX_BYTES = 64 << 20
"""Bytes that are read and dropped from a body that is already answered, or from a connection that is closing."""
FLOOD_DISCARD_MAX_BYTES = 256 * 1024
"""The same limit after HEAD_MAX_BYTES of chunk framing or trailers without a byte of body."""
LINGER_SECONDS = 5
DRAIN_LINGER_SECONDS = 0.2
_REQUEST_BYTES, _FIELD_BYTES = 2_000, 150
"""Memory that Python needs in addition to the bytes of a request, and of each of its fields."""
_FLOOD = 431


class Connection(asyncio.BufferedProtocol):
    """One client connection. At least one timer runs, unless the application works on a request."""

    __slots__ = (
        "_client",
        "_closing",
        "_deadline",
        "_discard_max_bytes",
        "_discarded_bytes",
        "_held_bytes",
        "_input_ended",
        "_lost",
        "_parser",
        "_pipeline",
        "_reading_over",
        "_receiving",
        "_state",
        "_timed",
        "_unread",
    )

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._client: ClientTransport
        self._deadline = Deadline(state.loop, self._expire)
        self._parser = RequestParser(self)
        self._pipeline = Pipeline(self, state)
        self._receiving: Exchange | None = None
        """The request whose body is arriving. It may have a response already."""
        self._unread = b""
        """Received bytes that wait until the pipeline or a body buffer has room."""
        self._held_bytes = 0
        self._discarded_bytes = 0
        self._discard_max_bytes = DISCARD_MAX_BYTES
        self._timed = False
        """Whether the deadline runs for the request that is arriving."""
        self._reading_over = False
        """Whether the connection takes no more requests."""
        self._input_ended = False
        """Whether the client has sent its last byte."""
        self._closing = False
        """Whether the last response has been sent."""
        self._lost = False
        """Whether the connection is closed."""

    # The event loop calls these.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, or refuse the connection."""
        self._client = ClientTransport(transport, self._state)
        refusal = self._state.enter(self, transport.get_extra_info("peername"))
        if self._state.draining:
            self._client.close()
        elif refusal is None:
            self._deadline.set(self._state.limits.request_timeout_seconds)
        elif self._state.too_many_refused:
            self._client.abort()
        else:
            self._refuse(refusal)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Free everything that the connection holds."""
        self._lost = self._reading_over = True
        self._deadline.close()
        self._client.lose()
        self._parser.close()
        self._keep_unread(b"")
        self._pipeline.lose()
        self._receiving = None
        self._state.leave(self)

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Return the buffer for the next read. All connections share it."""
        return self._state.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Read the received bytes, or drop them if the connection is closing."""
        if nbytes == READ_MAX_BYTES:
            # The buffer is full, so the client has sent more. Other connections come first.
            self._client.yield_turn()
        if self._closing:
            self._discarded_bytes += nbytes
            if self._discarded_bytes > self._discard_max_bytes:
                self._client.close()
        elif not self._reading_over:
            data = bytes(self._state.read_buffer[:nbytes])
            self._read(self._unread + data if self._unread else data)

    def eof_received(self) -> bool:
        """Note that the client sends no more. It still gets its responses, but reads that wait for an order end now."""
        self._input_ended = True
        if not self._unread:
            self._end_input()
        return bool(self._pipeline)

    def pause_writing(self) -> None:
        """Limit the time in which the client must take the response. The limit is the one for sending a request."""
        self._client.pause_writing()

    def resume_writing(self) -> None:
        """Continue with the next request: the client has taken the whole response."""
        self._client.resume_writing()
        if self._closing:
            self._linger()
        elif not self._lost:
            self._go_on()

    # The server calls these.

    def drain(self) -> None:
        """Answer the requests that have arrived, then close. A request that has arrived in part is refused."""
        if self._closing:
            self._linger()
        elif self._parser.begun:
            self._refuse(problems.unavailable("The gateway is stopping."))
        elif self._pipeline:
            self._stop_reading()
        else:
            self._client.close()

    def stop_work(self) -> None:
        """Cancel the request that the application works on. It gets a 503. Drop the requests after it."""
        self._stop_reading()
        self._pipeline.stop_work()

    def abort(self) -> None:
        """Close at once."""
        self._client.abort()

    # Reading. The parser calls begin_request, take_head, take_body and end_request.

    def _read(self, data: bytes) -> None:
        """Parse requests while there is room for them, and keep the rest."""
        at = 0
        while at < len(data) and not self._reading_over and self._has_room():
            end = self._parser.end_of_piece(data, at)
            try:
                self._parser.feed(data if end - at == len(data) else data[at:end])
            except Problem as problem:
                self._refuse(problem)
            at = end
        self._keep_unread(b"" if self._reading_over else data[at:])
        if self._state.overfull and (self._parser.begun or self._unread):
            self._refuse(problems.unavailable("Too many requests are arriving."))
        if self._input_ended and not self._unread:
            self._end_input()
        self._update()

    def _has_room(self) -> bool:
        exchange = self._receiving
        if exchange is None:
            return self._parser.begun or len(self._pipeline) < QUEUED_REQUESTS_MAX
        return exchange.answered or len(exchange.body) < BODY_BUFFER_MAX_BYTES

    def begin_request(self) -> None:
        """Note that the first byte of a request has arrived. Each request has its own time limit."""
        self._timed = False

    def take_head(self, head: RequestHead, fields: Fields, *, keep_alive: bool) -> None:
        """Add a request whose head has arrived to the pipeline."""
        if self._state.overfull:
            raise problems.unavailable("Too many requests are arriving.")
        held = _REQUEST_BYTES + _FIELD_BYTES * len(fields) + self._parser.head_bytes
        exchange = Exchange(self._pipeline, asgi_scope(head, fields), head, keep_alive=keep_alive, held_bytes=held)
        self._receiving = exchange
        self._pipeline.add(exchange)
        if len(self._pipeline) == 1 and not self._client.write_paused:
            self._pipeline.start_next()

    def take_body(self, body: bytes) -> None:
        """Pass a piece of the body to its request, or drop it if the request has its response."""
        exchange = self._receiving
        assert exchange is not None
        if exchange.answered:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > self._discard_max_bytes:
                raise problems.malformed_request()
        else:
            self._state.held_bytes += len(body)
            exchange.feed(body)

    def end_request(self) -> None:
        """Note that the whole request has arrived."""
        exchange = self._receiving
        assert exchange is not None
        self._receiving = None
        self._discarded_bytes = 0
        exchange.set_complete()
        if not exchange.keep_alive:
            self._reading_over = True
        if exchange.answered:
            self._deadline.set(KEEP_ALIVE_SECONDS)

    def body_taken(self) -> None:
        """Read on: the application has taken a piece of a body."""
        if self._unread:
            self._read(self._unread)
        elif self._client.reading_paused:
            self._update()

    def _stop_reading(self) -> None:
        """Take no more requests from this connection."""
        self._reading_over = True
        self._receiving = None
        self._parser.close()
        self._keep_unread(b"")
        self._update()

    def _end_input(self) -> None:
        """Drop an incomplete request and end waiting reads: the client has sent its last byte."""
        incomplete = self._receiving
        self._stop_reading()
        self._pipeline.end_all_input()
        if incomplete is not None and not incomplete.answered and incomplete.task is None:
            self._pipeline.drop_last()

    def _refuse(self, problem: Problem) -> None:
        """Answer the request that is arriving without the application, after all earlier requests, and close."""
        if self._reading_over:
            return
        exchange = self._receiving
        is_head = self._parser.is_head
        self._stop_reading()
        if exchange is not None and problem.status == _FLOOD:
            self._discard_max_bytes = FLOOD_DISCARD_MAX_BYTES
        if exchange is not None and exchange.answered:
            self._close()
            return
        if exchange is None:
            exchange = Exchange(self._pipeline, None, None, keep_alive=False)
            exchange.is_head = is_head
            self._pipeline.add(exchange)
        exchange.problem = problem
        exchange.end_input()
        if self._pipeline.is_next(exchange):
            self._pipeline.start_next()
        self._update()

    # Responding. The pipeline calls send_response, send_continue and close_without_response.

    def send_response(self, exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
        """Send the response of a request. Then start the next request, or close."""
        last = self._is_last(exchange)
        head = response_head(status, headers, self._state.date_field, close=last)
        self._client.send(head, b"" if exchange.is_head else body)
        if last:
            self._close()
        else:
            self._go_on()

    def send_continue(self) -> None:
        """Ask the client for the body of the first request."""
        self._client.send_continue()

    def _is_last(self, exchange: Exchange) -> bool:
        """Return whether the connection ends with this response."""
        if not exchange.keep_alive or exchange.problem is not None:
            return True
        if exchange is self._receiving:
            # A client that waited for 100 (Continue) may now send the body or its next request.
            # The server cannot tell which.
            return exchange.expects_continue or self._parser.body_left_bytes > DISCARD_MAX_BYTES
        return self._reading_over and not self._pipeline

    def _go_on(self) -> None:
        """Start the next request, unless the client has yet to take a response."""
        if self._client.write_paused:
            return
        if self._pipeline:
            self._pipeline.start_next()
        elif not self._parser.begun:
            self._deadline.set(KEEP_ALIVE_SECONDS)
        if self._unread:
            self._read(self._unread)
        else:
            self._update()

    # Closing.

    def close_without_response(self) -> None:
        """Close: the client disconnected before its request was complete."""
        self._client.close()

    def _close(self) -> None:
        """Close after the last response, and after the client has had time to read it.

        If a socket closes while it has unread bytes, the connection is reset, and the client loses the bytes that it
        has not read yet.
        """
        self._closing = True
        self._discarded_bytes = 0
        self._stop_reading()
        self._pipeline.close()
        if self._input_ended or self._client.is_closing:
            self._client.close()
            return
        self._client.end_output()
        if not self._client.write_paused:
            self._linger()

    def _linger(self) -> None:
        self._deadline.set(DRAIN_LINGER_SECONDS if self._state.draining else LINGER_SECONDS)

    # Time limits and memory.

    def _update(self) -> None:
        """Read while there is room. Run the deadline of the arriving request while the client has to act."""
        if self._lost:
            return
        pause = not self._closing and ((self._reading_over and bool(self._pipeline)) or not self._has_room())
        self._client.set_reading(wanted=not pause)
        if self._closing:
            return
        if self._parser.begun and not pause and not self._owes_continue():
            if not self._timed:
                self._timed = True
                self._deadline.set(self._state.limits.request_timeout_seconds)
        elif self._parser.begun or self._pipeline:
            self._timed = False
            self._deadline.clear()

    def _owes_continue(self) -> bool:
        """Return whether the client waits for 100 (Continue), which the server sends after the earlier responses."""
        return self._receiving is not None and self._receiving.expects_continue and len(self._pipeline) > 1

    def _expire(self) -> None:
        if self._parser.begun:
            self._refuse(problems.request_timeout(self._state.limits.request_timeout_seconds))
        else:
            self._client.close()

    def _keep_unread(self, data: bytes) -> None:
        """Keep bytes that there is no room for yet. Count them and the head that is arriving."""
        self._unread = data
        held = len(data) + self._parser.held_bytes
        self._state.held_bytes += held - self._held_bytes
        self._held_bytes = held
