"""Takes in the bodies of requests, within bounds: for each of them, and for all that are on their way together."""

from orderstream.api_gateway.http import problems
from orderstream.api_gateway.http.endpoint import DisconnectedError, Request
from orderstream.api_gateway.http.header_fields import media_type
from orderstream.api_gateway.http.request_head import LENGTH_MAX_DIGITS

BODY_MAX_BYTES = 1 << 20
BODIES_MAX_BYTES = 64 << 20
"""What all bodies on their way may have together; beyond it they are refused, and their clients try again."""

UTF_8 = ("utf-8", "utf8")


class BodyReader:
    """Reads JSON bodies."""

    def __init__(self, limit_bytes: int = BODIES_MAX_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0

    async def read(self, request: Request) -> bytes:
        """Read the body of a request that declares plain JSON. Raises Problem 413, 415 or 503."""
        headers = request.headers
        if not _is_json(headers.get(b"content-type", b"")) or _is_encoded(headers.get(b"content-encoding")):
            raise problems.unsupported_media_type()
        if _is_beyond(headers.get(b"content-length", b"0"), BODY_MAX_BYTES):
            raise problems.body_too_large(BODY_MAX_BYTES)
        # Not a list of pieces: a piece of two bytes would take 41 bytes of memory.
        body = bytearray()
        more = True
        try:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                body += message["body"]
                self._held_bytes += len(message["body"])
                if len(body) > BODY_MAX_BYTES:
                    raise problems.body_too_large(BODY_MAX_BYTES)
                if self._held_bytes > self._limit_bytes:
                    raise problems.bodies_full()
                more = message["more_body"]
        finally:
            self._held_bytes -= len(body)
        return bytes(body)


def _is_json(content_type: bytes) -> bool:
    """Say whether a Content-Type is JSON in UTF-8. Other parameters than the charset mean nothing to us."""
    if content_type == b"application/json":
        return True
    declared = media_type(content_type)
    return (
        declared is not None
        and declared.name == "application/json"
        and all(value.lower() in UTF_8 for name, value in declared.parameters if name == "charset")
    )


def _is_encoded(content_encoding: bytes | None) -> bool:
    """Say whether a body has an encoding: a list of `identity`, in any case of letters, is none."""
    if content_encoding is None:
        return False
    return any(coding.strip().lower() not in (b"", b"identity") for coding in content_encoding.split(b","))


def _is_beyond(content_length: bytes, limit_bytes: int) -> bool:
    """Say whether a length is declared that is too large; what is no number is left to the count of what arrives."""
    return content_length.isdigit() and (len(content_length) > LENGTH_MAX_DIGITS or int(content_length) > limit_bytes)
