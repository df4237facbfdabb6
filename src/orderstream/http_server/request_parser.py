"""Parses the requests in the bytes of one connection.

llhttp (in httptools) alone decides where a request begins and ends. The parser feeds it up to the next empty line, so
that it never sees more than one request at once.
"""

from typing import Protocol

import httptools

from orderstream.http_server import problems, request_head
from orderstream.http_server.problems import Problem
from orderstream.http_server.request_head import FIELDS_MAX, HEAD_MAX_BYTES, TARGET_MAX_BYTES, Fields, RequestHead
from orderstream.telemetry import logs

_HEAD_END = b"\r\n\r\n"
_WHITE_SPACE = b" \t"
_NO_PARSER = httptools.HttpRequestParser(object())


class Receiver(Protocol):
    """Receives the parts of requests. If it raises a Problem, the parser stops."""

    def begin_request(self) -> None:
        """Note that the first byte of a request has arrived."""

    def take_head(self, head: RequestHead, fields: Fields, *, keep_alive: bool) -> None:
        """Take the head of a request."""

    def take_body(self, body: bytes) -> None:
        """Take a piece of its body."""

    def end_request(self) -> None:
        """Note that the whole request has arrived."""


class RequestParser:
    """Parses the requests of one connection. httptools calls the methods whose names begin with `on_`."""

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
        """Whether a request has arrived in part."""
        self.in_body = False
        """Whether its head has arrived."""
        self.head_bytes = 0
        """The size of the last head, as far as it has arrived."""
        self.body_left_bytes = 0
        """The bytes that are missing from a body of known length."""
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
        """Stop parsing. Free the last head, and the httptools parser, which refers to methods of this object."""
        self._parser = _NO_PARSER
        self.begun = False
        self._forget()

    def _forget(self) -> None:
        """Free the last head. An idle connection must not hold memory that is not counted."""
        self._target = b""
        self._fields = []

    @property
    def held_bytes(self) -> int:
        """The size of the head that is arriving."""
        return self._field_bytes if self.begun and not self.in_body else 0

    @property
    def is_head(self) -> bool:
        """Whether the arriving request is a HEAD request."""
        return self.begun and bool(self._target) and self._parser.get_method() == b"HEAD"

    def end_of_piece(self, data: bytes, at: int) -> int:
        """Return the end of the next piece of `data` to feed: a body of known length, or up to the next empty line."""
        if self.body_left_bytes:
            return min(len(data), at + self.body_left_bytes)
        tail = self._tail
        if tail:
            # An empty line may arrive in two parts. Then its last bytes are the first ones of `data`.
            found = (tail + data[at : at + 3]).find(_HEAD_END)
            if found >= 0:
                self._tail = b""
                return at + found - len(tail) + len(_HEAD_END)
        found = data.find(_HEAD_END, at)
        if found < 0:
            self._tail = (tail + data[max(at, len(data) - 3) :])[-3:]
            return len(data)
        self._tail = b""
        return found + len(_HEAD_END)

    def feed(self, piece: bytes) -> None:
        """Parse a piece that ends at `end_of_piece`. Raises Problem. After that, the parser must be closed."""
        if not self.in_body:
            self.head_bytes = self._field_bytes + len(piece)
            if self.head_bytes > HEAD_MAX_BYTES:
                raise problems.head_too_large(HEAD_MAX_BYTES)
            self._check_lines(piece)
        framed = not self.body_left_bytes
        self._progressed = False
        self._parse(piece)
        if framed:
            # These bytes are no body: the head, the framing of chunks, or the trailer fields.
            self._field_bytes = 0 if self._progressed else self._field_bytes + len(piece)
            if self._field_bytes > HEAD_MAX_BYTES:
                raise problems.head_too_large(HEAD_MAX_BYTES)

    def _check_lines(self, piece: bytes) -> None:
        """Raise Problem 400 if a line of the head begins with white space (RFC 9112, 2.2 and 5.2)."""
        lines = self._last_two + piece if self._last_two else piece
        self._last_two = b"" if piece.endswith(_HEAD_END) else lines[-2:]
        if b"\r\n " in lines or b"\r\n\t" in lines:
            raise problems.malformed_request("A field must not continue on the next line.")

    def _parse(self, piece: bytes) -> None:
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(piece[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, Problem):
                raise error.__context__ from None
            # This is a bug. Its response waits in the pipeline, so that earlier requests get their responses first.
            logs.get().error("request_failed", route="unreadable", exc_info=error.__context__)
            raise problems.internal_error() from error
        except httptools.HttpParserInvalidMethodError:
            if request_head.unknown_method(piece):
                raise problems.not_implemented("The server does not implement this method.") from None
            raise problems.malformed_request() from None
        except httptools.HttpParserError:
            raise problems.malformed_request() from None

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the request again without `upgrade` (RFC 9110, 7.8). llhttp does not parse the body of an upgrade."""
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
        """Begin a request."""
        self.begun = True
        self._trailers = 0
        self._receiver.begin_request()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request target."""
        self._target += url
        if len(self._target) > TARGET_MAX_BYTES:
            raise problems.target_too_long(TARGET_MAX_BYTES)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head. Trailer fields are counted and dropped."""
        if self.in_body:
            self._trailers += 1
        else:
            self._fields.append((name.lower(), value.strip(_WHITE_SPACE)))
        if len(self._fields) > FIELDS_MAX or self._trailers > FIELDS_MAX:
            raise problems.too_many_fields(FIELDS_MAX)

    def on_headers_complete(self) -> None:
        """Check the head and pass it on."""
        self._progressed = True
        parser = self._parser
        method = parser.get_method().decode("ascii")
        if parser.should_upgrade():
            if method == "CONNECT":
                raise problems.not_implemented("This server is not a proxy.")
            self._upgrade_offered = True
            return
        version = parser.get_http_version()
        head = request_head.read_head(method, self._target, version, self._fields)
        self.in_body = True
        self.body_left_bytes = head.body_bytes
        keep_alive = version == "1.1" and parser.should_keep_alive()
        self._receiver.take_head(head, self._fields, keep_alive=keep_alive)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._progressed = True
        if self.body_left_bytes:
            self.body_left_bytes -= len(body)
        self._receiver.take_body(body)

    def on_message_complete(self) -> None:
        """End the request, unless it will be parsed again without `upgrade`."""
        if not self._upgrade_offered:
            self.begun = self.in_body = False
            self._progressed = True
            self._forget()
            if self._trailers:
                # httptools treats a `connection: close` in the trailer as one in the head, and then parses no more.
                self._parser = httptools.HttpRequestParser(self)
            self._receiver.end_request()
