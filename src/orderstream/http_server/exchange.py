"""One request and its response, in the form of an ASGI scope, `receive` and `send`."""

import asyncio
from typing import Protocol

from starlette.types import Message, Scope

from orderstream.http_server.problems import Headers, Problem
from orderstream.http_server.request_head import Fields, RequestHead


class Responder(Protocol):
    """The pipeline of an exchange."""

    def send_continue(self) -> None:
        """Ask the client for the body."""

    def respond(self, exchange: "Exchange", status: int, headers: Headers, body: bytes) -> None:
        """Send the whole response."""

    def body_taken(self, size: int) -> None:
        """Note that the application has taken `size` bytes of the body."""


class Exchange:
    """A request whose head has arrived. `problem` is its response if the application gives none."""

    __slots__ = (
        "_delivered",
        "_responder",
        "_start",
        "_waiter",
        "answered",
        "body",
        "complete",
        "expects_continue",
        "held_bytes",
        "input_ended",
        "is_head",
        "keep_alive",
        "problem",
        "scope",
        "task",
    )

    def __init__(
        self,
        responder: Responder,
        scope: Scope | None,
        head: RequestHead | None,
        *,
        keep_alive: bool,
        held_bytes: int = 0,
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.held_bytes = held_bytes
        self.is_head = head is not None and head.method == "HEAD"
        self.expects_continue = head is not None and head.expects_continue
        self.body = bytearray()
        """The bytes of the body that the application has not taken yet."""
        self.complete = False
        """Whether the whole request has arrived."""
        self.answered = False
        self.input_ended = False
        """Whether no more of the request arrives."""
        self.problem: Problem | None = None
        self.task: asyncio.Task[None] | None = None
        self._responder = responder
        self._delivered = False
        self._start: Message | None = None
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> None:
        """Append a piece of the body."""
        self.body += data
        self._wake()

    def set_complete(self) -> None:
        """Note that the whole request has arrived."""
        self.complete = True
        self._wake()

    def end_input(self) -> None:
        """Note that no more bytes of the request will arrive, or that the client does not read the response."""
        self.input_ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """Return the next piece of the body, or `http.disconnect` after the end of the input or after the response."""
        if self.expects_continue:
            self.expects_continue = False
            if not self.complete and not self.body and not self.input_ended:
                self._responder.send_continue()
        while True:
            if self.body or (self.complete and not self._delivered):
                body = bytes(self.body)
                self.body.clear()
                self._delivered = self.complete
                self._responder.body_taken(len(body))
                return {"type": "http.request", "body": body, "more_body": not self._delivered}
            if self.input_ended or self.answered:
                return {"type": "http.disconnect"}
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def send(self, message: Message) -> None:
        """Take the response: one start message and one body message."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is None or self.answered or message.get("more_body"):
            raise RuntimeError("a response must be one http.response.start and one http.response.body")
        self._responder.respond(self, self._start["status"], self._start["headers"], message.get("body", b""))


def asgi_scope(head: RequestHead, fields: Fields) -> Scope:
    """Return the ASGI scope of a request."""
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
