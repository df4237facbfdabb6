"""Reads requests out of the bytes of one connection.

llhttp (by httptools) alone decides where a request begins and ends. It is fed up to the next empty line, so that it
never reads more than one request at once.
"""

from typing import Protocol

import httptools

from orderstream.api_gateway.http import problems, request_head
from orderstream.api_gateway.http.problems import Problem
from orderstream.api_gateway.http.request_head import FIELDS_MAX, HEAD_MAX_BYTES, TARGET_MAX_BYTES, Fields, Head
from orderstream.telemetry import logs

_HEAD_END = b"\r\n\r\n"
_WHITE_SPACE = b" \t"
_NO_PARSER = httptools.HttpRequestParser(object())


class Receiver(Protocol):
    """Takes what is read. A Problem that it raises ends the reading."""

    def begin_request(self) -> None:
        """The first byte of a request is there."""

    def take_head(self, request: Head, fields: Fields, *, keep_alive: bool) -> None:
        """The head of a request is there."""

    def take_body(self, body: bytes) -> None:
        """A piece of its body is there."""

    def end_request(self) -> None:
        """The request is there as a whole."""


class Incoming:
    """The requests of one connection. Its methods that begin with `on_` are the parser's."""

    __slots__ = (
        "_field_bytes",
        "_fields",
        "_last_two",
        "_parser",
        "_progressed",
        "_receiver",
        "_tail",
        "_target",
        "_trailers",
        "_upgrade_offered",
        "begun",
        "body_left_bytes",
        "head_bytes",
        "in_body",
    )

    def __init__(self, receiver: Receiver) -> None:
        self.begun = False
        """A request is arriving."""
        self.in_body = False
        """Its head is there."""
        self.head_bytes = 0
        """The length of the last head, as far as it has arrived."""
        self.body_left_bytes = 0
        """What is to come of a body of known length."""
        self._receiver = receiver
        self._parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        self._upgrade_offered = False
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._trailers = 0
        self._field_bytes = 0
        self._progressed = False
        self._tail = b""
        self._last_two = b""

    def close(self) -> None:
        """Read no more: free what was read, and the parser, which holds methods of this object."""
        self._parser = _NO_PARSER
        self.begun = False
        self._forget()

    def _forget(self) -> None:
        """Free the head that was read last: a connection that rests may hold nothing that is not counted."""
        self._target = b""
        self._fields = []

    @property
    def held_bytes(self) -> int:
        """The bytes of the head that is arriving."""
        return self._field_bytes if self.begun and not self.in_body else 0

    @property
    def is_head(self) -> bool:
        """The request whose head is arriving is a HEAD request."""
        return self.begun and bool(self._target) and self._parser.get_method() == b"HEAD"

    def end_of_piece(self, data: bytes, at: int) -> int:
        """Return up to where to feed `data` next: to the end of a body of known length, or to the next empty line."""
        if self.body_left_bytes:
            return min(len(data), at + self.body_left_bytes)
        tail = self._tail
        if not tail:
            found = data.find(_HEAD_END, at)
        else:
            # An empty line may come in two parts.
            found = (tail + data[at : at + 3]).find(_HEAD_END)
            found = data.find(_HEAD_END, at) if found < 0 else found + at - len(tail)
        if found < 0:
            self._tail = (tail + data[max(at, len(data) - 3) :])[-3:]
            return len(data)
        self._tail = b""
        return found + len(_HEAD_END)

    def feed(self, piece: bytes) -> None:
        """Read what `end_of_piece` has measured. Raises Problem; then nothing more can be read."""
        if not self.in_body:
            self.head_bytes = self._field_bytes + len(piece)
            if self.head_bytes > HEAD_MAX_BYTES:
                raise problems.head_too_large(HEAD_MAX_BYTES)
            self._check_lines(piece)
        framed = not self.body_left_bytes
        self._progressed = False
        self._parse(piece)
        if framed:
            # What is not body: the head, what frames the pieces of a chunked body, the fields that follow it.
            self._field_bytes = 0 if self._progressed else self._field_bytes + len(piece)
            if self._field_bytes > HEAD_MAX_BYTES:
                raise problems.head_too_large(HEAD_MAX_BYTES)

    def _check_lines(self, piece: bytes) -> None:
        """No line of a head begins with white space (RFC 9112, 2.2 and 5.2)."""
        lines = self._last_two + piece if self._last_two else piece
        self._last_two = b"" if piece.endswith(_HEAD_END) else lines[-2:]
        if b"\r\n " in lines or b"\r\n\t" in lines:
            raise problems.malformed_request("A field may not go on in the next line.")

    def _parse(self, piece: bytes) -> None:
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(piece[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, Problem):
                raise error.__context__ from None
            # A bug. It is an answer like any other: the requests before this one keep theirs.
            logs.get().error("request_failed", route="unreadable", exc_info=error.__context__)
            raise problems.internal_error() from error
        except httptools.HttpParserInvalidMethodError:
            if request_head.unknown_method(piece):
                raise problems.not_implemented("There is no such method.") from None
            raise problems.malformed_request() from None
        except httptools.HttpParserError:
            raise problems.malformed_request() from None

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the request again without its offer (RFC 9110, 7.8): with it, the parser does not read the body."""
        lines = [
            b"%b %b HTTP/%b\r\n"
            % (self._parser.get_method(), self._target, self._parser.get_http_version().encode("ascii")),
            *[b"%b: %b\r\n" % field for field in self._fields if field[0] != b"upgrade"],
            b"\r\n",
        ]
        self._upgrade_offered = False
        self._forget()
        self._parser = httptools.HttpRequestParser(self)
        self._parse(b"".join(lines))
        if rest:
            self._parse(rest)

    def on_message_begin(self) -> None:
        """A request begins."""
        self.begun = True
        self._trailers = 0
        self._receiver.begin_request()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request target."""
        self._target += url
        if len(self._target) > TARGET_MAX_BYTES:
            raise problems.target_too_long(TARGET_MAX_BYTES)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head. Fields that follow the body are counted and dropped."""
        if self.in_body:
            self._trailers += 1
        else:
            self._fields.append((name.lower(), value.strip(_WHITE_SPACE)))
        if len(self._fields) > FIELDS_MAX or self._trailers > FIELDS_MAX:
            raise problems.too_many_fields(FIELDS_MAX)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._progressed = True
        parser = self._parser
        method = parser.get_method().decode("ascii")
        if parser.should_upgrade():
            if method == "CONNECT":
                raise problems.not_implemented("This server is no proxy.")
            self._upgrade_offered = True
            return
        version = parser.get_http_version()
        request = request_head.read_head(method, self._target, version, self._fields)
        self.in_body = True
        self.body_left_bytes = request.body_bytes
        keep_alive = version == "1.1" and parser.should_keep_alive()
        self._receiver.take_head(request, self._fields, keep_alive=keep_alive)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._progressed = True
        if self.body_left_bytes:
            self.body_left_bytes -= len(body)
        self._receiver.take_body(body)

    def on_message_complete(self) -> None:
        """The request is there as a whole."""
        if not self._upgrade_offered:
            self.begun = self.in_body = False
            self._progressed = True
            self._forget()
            if self._trailers:
                # The parser takes a `connection: close` behind the body for one of the head, and reads no more.
                self._parser = httptools.HttpRequestParser(self)
            self._receiver.end_request()
