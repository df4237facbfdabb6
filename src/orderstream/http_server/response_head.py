"""The bytes of a response head."""

import time
from email.utils import formatdate
from http import HTTPStatus

from orderstream.http_server.problems import Headers

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_CLOSE = ((b"connection", b"close"),)


class DateField:
    """The Date field (RFC 9110, 6.6.1), formatted once a second."""

    __slots__ = ("_line", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        """Return the line of the field with the current time."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._line = b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
        return self._line


def response_head(status: int, headers: Headers, date: DateField, *, close: bool) -> bytes:
    """Return the head of a response, with its empty line. `close` adds `connection: close`."""
    fields = [*headers, *_CLOSE] if close else headers
    return b"".join(
        [
            _STATUS_LINES[status],
            date.line(),
            *[b"%b: %b\r\n" % field for field in fields],
            b"\r\n",
        ]
    )
