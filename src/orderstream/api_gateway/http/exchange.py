"""One request and its answer, as an ASGI application sees them."""

import asyncio
from typing import Protocol

from starlette.types import Message, Scope

from orderstream.api_gateway.http.problems import Headers, Problem
from orderstream.api_gateway.http.request_head import Head

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Line(Protocol):
    """The connection of an exchange."""

    def send_continue(self) -> None:
        """Ask the client for the body."""

    def respond(self, exchange: "Exchange", status: int, headers: Headers, body: bytes) -> None:
        """Send the whole answer."""

    def body_taken(self, size: int) -> None:
        """The application has taken `size` bytes of the body."""


class Exchange:
    """A request whose head is there. `problem` answers it if the application does not."""

    __slots__ = (
        "_delivered",
        "_start",
        "_waiter",
        "answered",
        "body",
        "complete",
        "expects_continue",
        "gone",
        "held_bytes",
        "is_head",
        "keep_alive",
        "line",
        "problem",
        "scope",
        "task",
    )

    def __init__(
        self, line: Line, scope: Scope | None, head: Head | None, *, keep_alive: bool, held_bytes: int = 0
    ) -> None:
        self.line = line
        self.scope = scope
        self.keep_alive = keep_alive
        self.held_bytes = held_bytes
        self.is_head = head is not None and head.method == "HEAD"
        self.expects_continue = head is not None and head.expects_continue
        self.body = bytearray()
        self.complete = False
        self.answered = False
        self.gone = False
        self.problem: Problem | None = None
        self.task: asyncio.Task[None] | None = None
        self._delivered = False
        self._start: Message | None = None
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        """Take a piece of the body."""
        self.body += data
        self._wake()

    def end(self) -> None:
        """The request is there as a whole."""
        self.complete = True
        self._wake()

    def leave(self) -> None:
        """No more of the request will come, or the client takes no answer."""
        self.gone = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """Return the next piece of the body, or that there is no client to wait for."""
        if self.expects_continue:
            self.expects_continue = False
            if not self.complete and not self.body and not self.gone:
                self.line.send_continue()
        while True:
            if self.body or (self.complete and not self._delivered):
                body = bytes(self.body)
                self.body.clear()
                self._delivered = self.complete
                self.line.body_taken(len(body))
                return {"type": "http.request", "body": body, "more_body": not self._delivered}
            if self.gone or self.answered:
                return {"type": "http.disconnect"}
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def send(self, message: Message) -> None:
        """Take the answer, which comes as a start and one body."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is None or self.answered or message.get("more_body"):
            raise RuntimeError("an answer is one http.response.start and one http.response.body")
        self.line.respond(self, self._start["status"], self._start["headers"], message.get("body", b""))
