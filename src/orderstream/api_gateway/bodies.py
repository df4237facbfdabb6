"""Takes in the bodies of requests, within bounds: for each of them, and for all that are on their way together."""

from orderstream.api_gateway import problems
from orderstream.api_gateway.endpoint import DisconnectedError, Request
from orderstream.api_gateway.intake import BODY_MAX_BYTES

BODIES_MAX_BYTES = 64 << 20
"""What all bodies on their way may have together; beyond it they are refused, and their clients try again."""


class Bodies:
    """Reads JSON bodies."""

    def __init__(self, limit_bytes: int = BODIES_MAX_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0

    async def read(self, request: Request) -> bytes:
        """Read the body of a request that declares plain JSON. Raises Problem 413, 415 or 503."""
        headers = request.headers
        if (
            not _is_json(headers.get(b"content-type", b""))
            or headers.get(b"content-encoding", b"identity") != b"identity"
        ):
            raise problems.unsupported_media_type()
        if int(headers.get(b"content-length", b"0")) > BODY_MAX_BYTES:
            raise problems.body_too_large(BODY_MAX_BYTES)
        parts: list[bytes] = []
        size = 0
        more = True
        try:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                parts.append(message["body"])
                size += len(message["body"])
                self._held_bytes += len(message["body"])
                if size > BODY_MAX_BYTES:
                    raise problems.body_too_large(BODY_MAX_BYTES)
                if self._held_bytes > self._limit_bytes:
                    raise problems.bodies_full()
                more = message["more_body"]
        finally:
            self._held_bytes -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _is_json(content_type: bytes) -> bool:
    if content_type == b"application/json":
        return True
    media_type, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    return media_type == b"application/json" and all(
        parameter in (b"", b"charset=utf-8", b'charset="utf-8"') for parameter in parameters
    )
