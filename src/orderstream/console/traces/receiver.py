"""`POST /v1/traces`: receives spans by OTLP over HTTP, as protobuf, also compressed with gzip.

The services send a token of their own (telemetry/ingest.py). Every limit has a clear answer. A full store is no error:
it evicts the oldest trace.
"""

import zlib
from collections.abc import Awaitable, Callable, Mapping

from orderstream.console.context import Console
from orderstream.console.traces.store import TraceStore
from orderstream.console.web.access import Access
from orderstream.http_server import problems
from orderstream.http_server.endpoint import Endpoint, Request, Response
from orderstream.http_server.header_fields import media_type
from orderstream.http_server.problems import Problem
from orderstream.http_server.request_body import BodyReader
from orderstream.telemetry.tracing import Tracer

PATH = "/v1/traces"
REQUEST_MAX_BYTES = 4 << 20
"""A request, before and after it is decompressed."""
REQUESTS_MAX_BYTES = 8 << 20
"""All requests that are arriving or being decoded."""
PROTOBUF = b"application/x-protobuf"

_GZIP = 31
"""The window size by which zlib expects the header of gzip."""

Work = Callable[[Callable[[], Response]], Awaitable[Response]]
"""Runs a blocking function in a thread. Raises Problem 503 if too many are waiting."""


def endpoint(console: Console, access: Access) -> Endpoint:
    """Return the ASGI application of `PATH`."""
    receiver = Receiver(console.traces, access.may_send_spans, console.work)
    return Endpoint(PATH, Tracer(None, 0), {"POST": receiver.receive})


class Receiver:
    """Handles the requests of exporters. `work` decodes them away from the event loop."""

    def __init__(self, store: TraceStore, may_send_spans: Callable[[str], bool], work: Work) -> None:
        self._store = store
        self._may_send_spans = may_send_spans
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
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not self._may_send_spans(token.strip()):
            detail = "`orderstream up` gives each service the token in OTEL_EXPORTER_OTLP_HEADERS."
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
