"""Reads the bodies of requests, with a limit for each body (413) and a limit for all arriving bodies together (503)."""

from orderstream.http_server import problems
from orderstream.http_server.endpoint import DisconnectedError, Request
from orderstream.http_server.header_fields import media_type
from orderstream.http_server.request_head import LENGTH_MAX_DIGITS

BODY_MAX_BYTES = 1 << 20
BODIES_MAX_BYTES = 64 << 20
"""The total size of all bodies that are arriving. Beyond it, a body is refused, and its client should try again."""

UTF_8 = ("utf-8", "utf8")


class BodyReader:
    """Reads bodies, and counts the bytes of all bodies that are arriving."""

    def __init__(self, limit_bytes: int = BODIES_MAX_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0

    async def read(self, request: Request) -> bytes:
        """Return the body of a request that declares uncompressed JSON.

        Raises Problem 413, 415 or 503, or DisconnectedError.
        """
        headers = request.headers
        if not _is_json(headers.get(b"content-type", b"")) or _is_encoded(headers.get(b"content-encoding")):
            raise problems.unsupported_media_type()
        return await self.collect(request, BODY_MAX_BYTES)

    async def collect(self, request: Request, max_bytes: int) -> bytes:
        """Return the body of a request, of any type. Raises Problem 413 or 503, or DisconnectedError."""
        if _declares_more_than(request.headers.get(b"content-length", b"0"), max_bytes):
            raise problems.body_too_large(max_bytes)
        # One buffer, because a list of pieces would need 41 bytes of memory for a piece of two bytes.
        body = bytearray()
        more = True
        try:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                body += message["body"]
                self._held_bytes += len(message["body"])
                if len(body) > max_bytes:
                    raise problems.body_too_large(max_bytes)
                if self._held_bytes > self._limit_bytes:
                    raise problems.bodies_full()
                more = message["more_body"]
        finally:
            self._held_bytes -= len(body)
        return bytes(body)


def _is_json(content_type: bytes) -> bool:
    """Return whether a Content-Type is JSON in UTF-8. Parameters other than the charset have no effect."""
    if content_type == b"application/json":
        return True
    declared = media_type(content_type)
    return (
        declared is not None
        and declared.name == "application/json"
        and all(value.lower() in UTF_8 for name, value in declared.parameters if name == "charset")
    )


def _is_encoded(content_encoding: bytes | None) -> bool:
    """Return whether a body is encoded. `identity`, in upper or lower case and also repeated, means that it is not."""
    if content_encoding is None:
        return False
    return any(coding.strip().lower() not in (b"", b"identity") for coding in content_encoding.split(b","))


def _declares_more_than(content_length: bytes, limit_bytes: int) -> bool:
    """Return whether the declared length exceeds the limit. If it is not a number, the arriving bytes are counted."""
    return content_length.isdigit() and (len(content_length) > LENGTH_MAX_DIGITS or int(content_length) > limit_bytes)
