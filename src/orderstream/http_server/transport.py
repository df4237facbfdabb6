"""The socket of one client connection: reading in fair turns, writing within a time limit, and closing."""

import asyncio

from orderstream.http_server.server_state import ServerState

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOIN_MAX_BYTES = 16 * 1024
"""Up to this size, copying the body after the head is cheaper than a write of two buffers."""


class ClientTransport:
    """Wraps the asyncio transport of a connection. Counts the bytes that the client has not taken yet."""

    __slots__ = (
        "_paused",
        "_responses",
        "_state",
        "_transport",
        "_unsent_bytes",
        "_write_timer",
        "_yielding",
        "write_paused",
    )

    def __init__(self, transport: asyncio.Transport, state: ServerState) -> None:
        # Bytes that the socket does not take at once pause writing. Closing would wait for them without a limit.
        transport.set_write_buffer_limits(high=0)
        self._transport = transport
        self._state = state
        self._paused = False
        self._yielding = False
        self._responses: list[bytes] = []
        """The heads and bodies that this round of the event loop will write."""
        self._unsent_bytes = 0
        self._write_timer: asyncio.TimerHandle | None = None
        self.write_paused = False
        """Whether the client has yet to take a part of the last response."""

    @property
    def is_closing(self) -> bool:
        """Whether the transport is closed or closing."""
        return self._transport.is_closing()

    @property
    def reading_paused(self) -> bool:
        """Whether `set_reading` has paused reading."""
        return self._paused

    def set_reading(self, *, wanted: bool) -> None:
        """Pause or resume reading."""
        if wanted == self._paused and not self._transport.is_closing():
            self._paused = not wanted
            if self._paused:
                self._transport.pause_reading()
            elif not self._yielding:
                self._transport.resume_reading()

    def yield_turn(self) -> None:
        """Pause reading for one turn of the event loop, so that other connections are read too."""
        self._yielding = True
        self._transport.pause_reading()
        self._state.loop.call_soon(self._stop_yielding)

    def _stop_yielding(self) -> None:
        self._yielding = False
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def send(self, head: bytes, body: bytes) -> None:
        """Send a whole response at the end of this round of the event loop, after those of other connections.

        A client on the same machine then wakes up once for many responses, and sends its next requests together.
        """
        if not self._responses:
            self._state.write_soon(self._write_responses)
        self._responses += (head, body)

    def _write_responses(self) -> None:
        responses, self._responses = self._responses, []
        if not responses:
            return
        if sum(map(len, responses)) > _JOIN_MAX_BYTES:
            self._transport.writelines(responses)
        else:
            self._transport.write(b"".join(responses))
        if self.write_paused:
            self._count_unsent()

    def send_continue(self) -> None:
        """Ask the client for the body of its request."""
        self._write_responses()
        self._transport.write(CONTINUE)

    def pause_writing(self) -> None:
        """Start the time limit in which the client must take the rest of the response."""
        self.write_paused = True
        self._count_unsent()
        seconds = self._state.limits.request_timeout_seconds
        self._write_timer = self._state.loop.call_later(seconds, self.abort)

    def _count_unsent(self) -> None:
        unsent_bytes = self._transport.get_write_buffer_size()
        self._state.held_bytes += unsent_bytes - self._unsent_bytes
        self._unsent_bytes = unsent_bytes

    def resume_writing(self) -> None:
        """End the time limit: the client has taken the whole response."""
        self.write_paused = False
        self.release()

    def release(self) -> None:
        """Cancel the timer of the unsent bytes, and stop counting them."""
        self._state.held_bytes -= self._unsent_bytes
        self._unsent_bytes = 0
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def end_output(self) -> None:
        """Tell the client that no more bytes follow. The client may still send."""
        self._write_responses()
        self._transport.write_eof()

    def close(self) -> None:
        """Close after the rest of the response is sent."""
        self._write_responses()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._responses = []
        self._transport.abort()

    def lose(self) -> None:
        """Forget what was not sent: the connection is closed."""
        self._responses = []
        self.release()
