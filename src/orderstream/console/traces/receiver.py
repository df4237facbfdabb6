"""`POST /v1/traces`: receives spans by OTLP over HTTP, as protobuf, also compressed with gzip.

The services hold a token of their own, so that none of them can act as the operator. It is derived from the operator's
token. Every limit has a clear answer. A full store is no error: it evicts the oldest trace.
"""

import hashlib
import hmac
import zlib
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote

from orderstream.console.traces.store import TraceStore
from orderstream.http_server import problems
from orderstream.http_server.endpoint import Request, Response
from orderstream.http_server.header_fields import media_type
from orderstream.http_server.problems import Problem
from orderstream.http_server.request_body import BodyReader

PATH = "/v1/traces"
REQUEST_MAX_BYTES = 4 << 20
"""A request, before and after it is decompressed."""
REQUESTS_MAX_BYTES = 8 << 20
"""All requests that are arriving or being decoded."""
PROTOBUF = b"application/x-protobuf"

_PURPOSE = b"orderstream: send spans to the console"
_GZIP = 31
"""The window size by which zlib expects the header of gzip."""

Work = Callable[[Callable[[], Response]], Awaitable[Response]]
"""Runs a blocking function in a thread. Raises Problem 503 if too many are waiting."""


def ingest_token(operator_token: str) -> str:
    """Return the token that services send with their spans. It permits nothing else."""
    return hmac.new(operator_token.encode(), _PURPOSE, hashlib.sha256).hexdigest()


def exporter_headers(operator_token: str) -> str:
    """Return the value of OTEL_EXPORTER_OTLP_HEADERS with which an exporter may send spans."""
    return f"authorization={quote(f'Bearer {ingest_token(operator_token)}')}"


class Receiver:
    """Handles the requests of exporters. `work` decodes them away from the event loop."""

    def __init__(self, store: TraceStore, operator_token: str, work: Work) -> None:
        self._store = store
        self._authorization = f"Bearer {ingest_token(operator_token)}".encode()
        self._work = work
        self._bodies = BodyReader(REQUESTS_MAX_BYTES)
        self._decoding_bytes = 0

    async def receive(self, request: Request) -> Response:
        """Keep the spans of a request. Raises Problem 400, 401, 413, 415 or 503, or DisconnectedError."""
        self._check_head(request.headers)
        is_compressed = _is_compressed(request.headers)
        body = await self._bodies.collect(request, REQUEST_MAX_BYTES)
        if self._decoding_bytes + len(body) > REQUESTS_MAX_BYTES:
            raise problems.unavailable("Too many spans are arriving.")
        self._decoding_bytes += len(body)
        try:
            return await self._work(lambda: self._keep(body, is_compressed=is_compressed))
        finally:
            self._decoding_bytes -= len(body)

    def _check_head(self, headers: Mapping[bytes, bytes]) -> None:
        given = headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, self._authorization):
            detail = "Send the token of OTEL_EXPORTER_OTLP_HEADERS, which `orderstream env` prints."
            fields = [(b"www-authenticate", b"Bearer")]
            raise Problem(401, "ingest-token-needed", "The token for spans is missing or wrong", detail, headers=fields)
        declared = media_type(headers.get(b"content-type", b""))
        if declared is None or declared.name != PROTOBUF.decode():
            raise _unsupported("Send content-type: application/x-protobuf. JSON is not supported.")

    def _keep(self, body: bytes, *, is_compressed: bool) -> Response:
        from orderstream.console.traces import otlp  # noqa: PLC0415 - 7 MB, only if spans arrive

        try:
            received = otlp.decode(_decompressed(body) if is_compressed else body)
        except otlp.MalformedError as error:
            raise Problem(400, "malformed-spans", "The spans are malformed", str(error)) from error
        self._store.add(received.spans)
        return Response(200, [(b"content-type", PROTOBUF)], otlp.answer(received.rejected))


def _is_compressed(headers: Mapping[bytes, bytes]) -> bool:
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding not in (b"", b"identity", b"gzip"):
        raise _unsupported("Send the body uncompressed, or with content-encoding: gzip.")
    return coding == b"gzip"


def _unsupported(detail: str) -> Problem:
    headers = [(b"accept", PROTOBUF), (b"accept-encoding", b"gzip, identity")]
    return Problem(415, "unsupported-media-type", "Unsupported media type", detail, headers=headers)


def _decompressed(body: bytes) -> bytes:
    """Decompress a body up to its limit. Raises Problem 400 or 413."""
    reader = zlib.decompressobj(_GZIP)
    try:
        content = reader.decompress(body, REQUEST_MAX_BYTES + 1)
    except zlib.error as error:
        raise _not_gzip() from error
    if len(content) > REQUEST_MAX_BYTES:
        raise problems.body_too_large(REQUEST_MAX_BYTES)
    if not reader.eof or reader.unused_data:
        raise _not_gzip()
    return content


def _not_gzip() -> Problem:
    return Problem(400, "malformed-spans", "The spans are malformed", "The body is not one whole gzip stream.")
