"""One connection of a client: its requests are queued, worked on and answered in the order in which they came.

A refusal by the server itself (400, 408, 431, 503 and others) waits its turn in this queue. It never answers an earlier
request, nor one that the application answers (P1).
"""

import asyncio
from collections import deque

from orderstream.api_gateway.http import problems, response
from orderstream.api_gateway.http.deadline import Deadline
from orderstream.api_gateway.http.exchange import CONTINUE, Exchange
from orderstream.api_gateway.http.problems import Headers, Problem
from orderstream.api_gateway.http.request_head import Fields, Head
from orderstream.api_gateway.http.request_parser import Incoming
from orderstream.api_gateway.http.server_state import READ_MAX_BYTES, Shared

KEEP_ALIVE_SECONDS = 65
QUEUED_REQUESTS_MAX = 16
BODY_BUFFER_MAX_BYTES = 64 * 1024
DISCARD_MAX_BYTES = 64 << 20
"""What is read and dropped of a body that was answered early, and of a connection that is closing."""
FLOOD_DISCARD_MAX_BYTES = 256 * 1024
"""The same for a client that sends nothing but framing or trailers for the length of a whole head."""
LINGER_SECONDS = 5
DRAIN_LINGER_SECONDS = 0.2
_REQUEST_BYTES, _FIELD_BYTES = 2_000, 150
"""What Python adds to the bytes of a request, and to those of each of its fields."""
_JOIN_MAX_BYTES = 16 * 1024
_FLOOD = 431


class Connection(asyncio.BufferedProtocol):
    """One connection. At any time one timer is armed at least, unless a request is being worked on."""

    __slots__ = (
        "_answer_timer",
        "_closing",
        "_deadline",
        "_discard_max_bytes",
        "_discarded_bytes",
        "_ended",
        "_exchanges",
        "_held_bytes",
        "_incoming",
        "_lost",
        "_paused",
        "_reading_over",
        "_receiving",
        "_shared",
        "_timed",
        "_transport",
        "_unread",
        "_unsent_bytes",
        "_write_paused",
        "_yielding",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._transport: asyncio.Transport
        self._deadline = Deadline(shared.loop, self._expire)
        self._answer_timer: asyncio.TimerHandle | None = None
        self._incoming = Incoming(self)
        self._exchanges: deque[Exchange] = deque()
        """Requests without an answer. Only the first one is worked on."""
        self._receiving: Exchange | None = None
        """The request whose body is arriving. It may have an answer already."""
        self._unread = b""
        self._held_bytes = 0
        self._unsent_bytes = 0
        self._discarded_bytes = 0
        self._discard_max_bytes = DISCARD_MAX_BYTES
        self._timed = False
        self._reading_over = False
        self._ended = False
        self._closing = False
        self._lost = False
        self._paused = False
        self._yielding = False
        self._write_paused = False

    # What the event loop tells.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        self._transport = transport
        # Anything that the socket does not take at once pauses writing: closing, too, would wait for it without end.
        transport.set_write_buffer_limits(high=0)
        refusal = self._shared.enter(self, transport.get_extra_info("peername"))
        if self._shared.draining:
            transport.close()
        elif refusal is None:
            self._deadline.set(self._shared.limits.request_timeout_seconds)
        elif self._shared.overrun:
            transport.abort()
        else:
            self._refuse(refusal)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Forget the connection. What is being worked on is finished all the same."""
        self._lost = self._reading_over = True
        self._deadline.close()
        self._stop_answer_timer()
        self._incoming.close()
        self._keep_unread(b"")
        for exchange in self._exchanges:
            self._release(exchange)
            exchange.complete = False
            exchange.leave()
        self._exchanges.clear()
        self._receiving = None
        self._shared.leave(self)

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Return where the loop puts what comes."""
        return self._shared.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        if nbytes == READ_MAX_BYTES:
            # There is more: other connections have their turn first.
            self._yielding = True
            self._transport.pause_reading()
            self._shared.loop.call_soon(self._stop_yielding)
        if self._closing:
            self._discarded_bytes += nbytes
            if self._discarded_bytes > self._discard_max_bytes:
                self._transport.close()
        elif not self._reading_over:
            data = bytes(self._shared.read_buffer[:nbytes])
            self._read(self._unread + data if self._unread else data)

    def eof_received(self) -> bool:
        """The client sends no more. It still gets its answers, except for reads that wait for an order to settle."""
        self._ended = True
        if not self._unread:
            self._end_input()
        return bool(self._exchanges)

    def pause_writing(self) -> None:
        """The client does not take its answer: it has as long as for a request."""
        self._write_paused = True
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self._shared.held_bytes += self._unsent_bytes
        seconds = self._shared.limits.request_timeout_seconds
        self._answer_timer = self._shared.loop.call_later(seconds, self._transport.abort)

    def resume_writing(self) -> None:
        """The client has taken all of it."""
        self._write_paused = False
        self._stop_answer_timer()
        if self._closing:
            self._linger()
        elif not self._lost:
            self._go_on()

    def _stop_answer_timer(self) -> None:
        self._shared.held_bytes -= self._unsent_bytes
        self._unsent_bytes = 0
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    # What the server tells.

    def drain(self) -> None:
        """Answer the requests that have arrived, then close. A request that has arrived in part is refused."""
        if self._closing:
            self._linger()
        elif self._incoming.begun:
            self._refuse(problems.unavailable("The gateway is stopping."))
        elif self._exchanges:
            self._stop_reading()
        else:
            self._transport.close()

    def stop_work(self) -> None:
        """End what is worked on: it answers 503. Drop what waits behind it."""
        while len(self._exchanges) > 1:
            self._release(self._exchanges.pop())
        self._stop_reading()
        if self._exchanges and (task := self._exchanges[0].task) is not None:
            task.cancel()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # Reading.

    def _read(self, data: bytes) -> None:
        """Read requests as far as there is room for them, and keep the rest."""
        at = 0
        while at < len(data) and not self._reading_over and self._has_room():
            end = self._incoming.end_of_piece(data, at)
            try:
                self._incoming.feed(data if end - at == len(data) else data[at:end])
            except Problem as problem:
                self._refuse(problem)
            at = end
        self._keep_unread(b"" if self._reading_over else data[at:])
        if self._shared.overfull and (self._incoming.begun or self._unread):
            self._refuse(problems.unavailable("Too many requests are arriving."))
        if self._ended and not self._unread:
            self._end_input()
        self._update()

    def _has_room(self) -> bool:
        exchange = self._receiving
        if exchange is None:
            return self._incoming.begun or len(self._exchanges) < QUEUED_REQUESTS_MAX
        return exchange.answered or len(exchange.body) < BODY_BUFFER_MAX_BYTES

    def begin_request(self) -> None:
        """The first byte of a request is there: the request has its own time."""
        self._timed = False

    def take_head(self, request: Head, fields: Fields, *, keep_alive: bool) -> None:
        """Queue a request."""
        if self._shared.overfull:
            raise problems.unavailable("Too many requests are arriving.")
        held = _REQUEST_BYTES + _FIELD_BYTES * len(fields) + self._incoming.head_bytes
        scope = self._shared.scope(request, fields)
        exchange = Exchange(self, scope, request, keep_alive=keep_alive, held_bytes=held)
        self._shared.held_bytes += held
        self._receiving = exchange
        self._exchanges.append(exchange)
        if len(self._exchanges) == 1 and not self._write_paused:
            self._start(exchange)

    def take_body(self, body: bytes) -> None:
        """Give a piece of the body to its request, or drop it if the request has its answer."""
        exchange = self._receiving
        assert exchange is not None
        if exchange.answered:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > self._discard_max_bytes:
                raise problems.malformed_request()
        else:
            self._shared.held_bytes += len(body)
            exchange.feed(body)

    def end_request(self) -> None:
        """A request is there as a whole."""
        exchange = self._receiving
        assert exchange is not None
        self._receiving = None
        self._discarded_bytes = 0
        exchange.end()
        if not exchange.keep_alive:
            self._reading_over = True
        if exchange.answered:
            self._deadline.set(KEEP_ALIVE_SECONDS)

    def _stop_reading(self) -> None:
        """Take no more requests from this connection."""
        self._reading_over = True
        self._receiving = None
        self._incoming.close()
        self._keep_unread(b"")
        self._update()

    def _end_input(self) -> None:
        """The client has sent its last byte. Drop a request that is incomplete, and end reads that wait."""
        incomplete = self._receiving
        self._stop_reading()
        for exchange in self._exchanges:
            exchange.leave()
        if incomplete is not None and not incomplete.answered and incomplete.task is None:
            self._release(self._exchanges.pop())

    def _refuse(self, problem: Problem) -> None:
        """Answer the request that is arriving instead of the application, after all earlier ones, and close."""
        if self._reading_over:
            return
        exchange = self._receiving
        is_head = self._incoming.is_head
        self._stop_reading()
        if exchange is not None and problem.status == _FLOOD:
            self._discard_max_bytes = FLOOD_DISCARD_MAX_BYTES
        if exchange is not None and exchange.answered:
            self._close()
            return
        if exchange is None:
            exchange = Exchange(self, None, None, keep_alive=False)
            exchange.is_head = is_head
            self._exchanges.append(exchange)
        exchange.problem = problem
        exchange.leave()
        if exchange is self._exchanges[0] and exchange.task is None:
            self._start(exchange)
        self._update()

    # Answering.

    def _start(self, exchange: Exchange) -> None:
        if exchange.problem is not None:
            self._answer_problem(exchange, exchange.problem)
        else:
            exchange.task = self._shared.start(exchange, self._end_work)

    def _end_work(self, exchange: Exchange, *, stopped: bool) -> None:
        """The application is done. If it has left the request without an answer, the server gives one."""
        if self._lost or exchange.answered:
            return
        if exchange.problem is not None:
            self._answer_problem(exchange, exchange.problem)
        elif exchange.gone:
            self._transport.close()
        elif stopped:
            self._answer_problem(exchange, problems.unavailable("The gateway is stopping."))
        else:
            self._answer_problem(exchange, problems.internal_error())

    def _answer_problem(self, exchange: Exchange, problem: Problem) -> None:
        exchange.problem = problem
        self.respond(exchange, *self._shared.reply(problem))

    def respond(self, exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
        """Send the answer to the first request of the queue, and go on to the next or close."""
        if self._lost or self._closing:
            return
        assert exchange is self._exchanges[0]
        self._exchanges.popleft()
        exchange.answered = True
        self._release(exchange)
        last = self._is_last(exchange)
        start = response.head(status, headers, self._shared.clock, close=last)
        if exchange.is_head:
            self._transport.write(start)
        elif len(body) > _JOIN_MAX_BYTES:
            self._transport.writelines((start, body))
        else:
            self._transport.write(start + body)
        if last:
            self._close()
        else:
            self._go_on()

    def _is_last(self, exchange: Exchange) -> bool:
        """Whether the connection ends with this answer."""
        if not exchange.keep_alive or exchange.problem is not None:
            return True
        if exchange is self._receiving:
            # A client that waited for 100 may send the body now, or not: what comes next cannot be told apart.
            return exchange.expects_continue or self._incoming.body_left_bytes > DISCARD_MAX_BYTES
        return self._reading_over and not self._exchanges

    def _go_on(self) -> None:
        """Turn to the next request, if the client takes its answers."""
        if self._write_paused:
            return
        if not self._exchanges:
            if not self._incoming.begun:
                self._deadline.set(KEEP_ALIVE_SECONDS)
        elif self._exchanges[0].task is None:
            self._start(self._exchanges[0])
        if self._unread:
            self._read(self._unread)
        else:
            self._update()

    def send_continue(self) -> None:
        """Ask the client for the body."""
        if not self._lost:
            self._transport.write(CONTINUE)

    def body_taken(self, size: int) -> None:
        """The application has taken `size` bytes of a body: there is room for more."""
        self._shared.held_bytes -= size
        if self._unread:
            self._read(self._unread)
        elif self._paused:
            self._update()

    # Closing.

    def _close(self) -> None:
        """Send what is left and close, but not before the client has had the time to read it.

        A socket that closes with bytes unread resets the connection, and the client loses what it has not read yet.
        """
        self._closing = True
        self._discarded_bytes = 0
        self._stop_reading()
        for exchange in self._exchanges:
            self._release(exchange)
        self._exchanges.clear()
        if self._ended or self._transport.is_closing():
            self._transport.close()
            return
        self._transport.write_eof()
        if not self._write_paused:
            self._linger()

    def _linger(self) -> None:
        self._deadline.set(DRAIN_LINGER_SECONDS if self._shared.draining else LINGER_SECONDS)

    # Time and room.

    def _update(self) -> None:
        """Read if there is room. Time the request that is arriving while it is its client's turn to act."""
        if self._lost:
            return
        pause = not self._closing and ((self._reading_over and bool(self._exchanges)) or not self._has_room())
        if pause != self._paused and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            elif not self._yielding:
                self._transport.resume_reading()
        if self._closing:
            return
        if self._incoming.begun and not pause and not self._owes_continue():
            if not self._timed:
                self._timed = True
                self._deadline.set(self._shared.limits.request_timeout_seconds)
        elif self._incoming.begun or self._exchanges:
            self._timed = False
            self._deadline.clear()

    def _owes_continue(self) -> bool:
        """Whether the client waits for 100 (Continue), which the server says once the earlier requests have answers."""
        return self._receiving is not None and self._receiving.expects_continue and len(self._exchanges) > 1

    def _stop_yielding(self) -> None:
        self._yielding = False
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _expire(self) -> None:
        if self._incoming.begun:
            self._refuse(problems.request_timeout(self._shared.limits.request_timeout_seconds))
        else:
            self._transport.close()

    def _keep_unread(self, data: bytes) -> None:
        """Keep what there is no room for yet, and count it and the head that is arriving."""
        self._unread = data
        held = len(data) + self._incoming.held_bytes
        self._shared.held_bytes += held - self._held_bytes
        self._held_bytes = held

    def _release(self, exchange: Exchange) -> None:
        """Stop counting what a request holds."""
        self._shared.held_bytes -= exchange.held_bytes + len(exchange.body)
        exchange.held_bytes = 0
        exchange.body.clear()
