"""The bytes of an answer."""

import time
from email.utils import formatdate
from http import HTTPStatus

from orderstream.api_gateway.http.problems import Headers

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_CLOSE = ((b"connection", b"close"),)


class Clock:
    """The Date field (RFC 9110, 6.6.1), formatted once a second."""

    __slots__ = ("_field", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._field = b""

    def field(self) -> bytes:
        """Return the line of the field for now."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._field = b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
        return self._field


def head(status: int, headers: Headers, clock: Clock, *, close: bool) -> bytes:
    """Return the head of an answer, with its empty line."""
    fields = [*headers, *_CLOSE] if close else headers
    return b"".join(
        [
            _STATUS_LINES[status],
            clock.field(),
            *[b"%b: %b\r\n" % field for field in fields],
            b"\r\n",
        ]
    )
