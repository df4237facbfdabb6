"""`POST /v1/traces`: the token, the content types, the limits, and an answer for every wrong request."""

import asyncio
import gzip
import time
from collections.abc import Callable

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.util.re import parse_env_headers

from orderstream.console.traces import receiver
from orderstream.console.traces.receiver import Receiver
from orderstream.console.traces.store import TraceStore
from orderstream.console.web.access import Access
from orderstream.http_server.endpoint import Endpoint, Response
from orderstream.telemetry.ingest import exporter_headers, ingest_token
from orderstream.telemetry.tracing import Tracer
from tests.support.asgi import Answer, call
from tests.unit.console.traces.spans import encoded, request, trace_id

OPERATOR = "the-token-of-the-operator"
BODY = request(encoded()).SerializeToString()
HEADERS = {"authorization": f"Bearer {ingest_token(OPERATOR)}", "content-type": "application/x-protobuf"}


async def work(function: Callable[[], Response]) -> Response:
    return await asyncio.to_thread(function)


class Receiving:
    def __init__(self) -> None:
        self.store = TraceStore()
        self.receiver = Receiver(self.store, Access(OPERATOR, None, time.time).may_send_spans, work)
        self._app = Endpoint(receiver.PATH, Tracer(None, 0), {"POST": self.receiver.receive})

    def post(self, *body: bytes, method: str = "POST", **headers: str) -> Answer:
        given = HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
        return asyncio.run(call(self._app, method, receiver.PATH, body or (b"",), given))


@pytest.fixture
def receiving() -> Receiving:
    return Receiving()


def problem(answer: Answer) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status, msgspec.json.decode(answer.body)["type"].removeprefix("urn:orderstream:problem:")


@pytest.mark.parametrize("compressed", [False, True])
def test_the_spans_of_a_request_are_in_the_store(receiving: Receiving, compressed: bool) -> None:
    body = gzip.compress(BODY) if compressed else BODY
    answer = receiving.post(body[:7], body[7:], content_encoding="gzip" if compressed else "identity")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/x-protobuf", b"")
    (span,) = receiving.store.spans_of(trace_id(0))
    assert (span.service, span.name) == ("api-gateway", "POST /orders")


def test_rejected_spans_are_counted_in_the_answer(receiving: Receiving) -> None:
    answer = receiving.post(request(encoded(), encoded(trace_id=b"short")).SerializeToString())
    assert answer.status == 200
    assert ExportTraceServiceResponse.FromString(answer.body).partial_success.rejected_spans == 1


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", f"Bearer {OPERATOR}", f"Basic {ingest_token(OPERATOR)}", f"Bearer {ingest_token('another')}", "é"],
)
def test_only_the_token_for_spans_is_accepted(receiving: Receiving, authorization: str) -> None:
    assert problem(receiving.post(BODY, authorization=authorization)) == (401, "ingest-token-needed")
    assert receiving.store.figures().spans == 0


def test_the_token_for_spans_does_not_contain_the_operators() -> None:
    assert OPERATOR not in exporter_headers(OPERATOR)
    assert ingest_token(OPERATOR) != ingest_token(OPERATOR + "x")


def test_an_exporter_reads_the_header_as_the_receiver_expects_it() -> None:
    assert parse_env_headers(exporter_headers(OPERATOR), liberal=True) == {"authorization": HEADERS["authorization"]}


@pytest.mark.parametrize("content_type", ["", "application/json", "text/plain", "application/x-protobuf2", "x"])
def test_another_content_type_is_refused(receiving: Receiving, content_type: str) -> None:
    answer = receiving.post(BODY, content_type=content_type)
    assert problem(answer) == (415, "unsupported-media-type")
    assert answer.headers["accept"] == "application/x-protobuf"


@pytest.mark.parametrize("coding", ["deflate", "br", "gzip, gzip"])
def test_another_content_coding_is_refused(receiving: Receiving, coding: str) -> None:
    assert problem(receiving.post(BODY, content_encoding=coding)) == (415, "unsupported-media-type")


@pytest.mark.parametrize(
    "body",
    [b"", b"no gzip", gzip.compress(BODY)[:-9], gzip.compress(BODY) + b"x", gzip.compress(BODY) * 2],
    ids=["empty", "other", "cut", "more bytes", "two streams"],
)
def test_a_body_that_is_not_one_gzip_stream_is_refused(receiving: Receiving, body: bytes) -> None:
    assert problem(receiving.post(body, content_encoding="gzip")) == (400, "malformed-spans")


def test_a_gzip_bomb_is_refused_before_it_unfolds(receiving: Receiving) -> None:
    bomb = gzip.compress(bytes(64 << 20), 9)
    assert len(bomb) < 100_000
    assert problem(receiving.post(bomb, content_encoding="gzip")) == (413, "body-too-large")


def test_a_body_beyond_the_limit_is_refused(receiving: Receiving) -> None:
    piece = bytes(1 << 20)
    assert problem(receiving.post(*[piece] * 5)) == (413, "body-too-large")
    assert problem(receiving.post(b"", content_length=str(receiver.REQUEST_MAX_BYTES + 1))) == (413, "body-too-large")


def test_a_malformed_body_is_refused(receiving: Receiving) -> None:
    assert problem(receiving.post(b"{}")) == (400, "malformed-spans")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_is_refused(receiving: Receiving, method: str) -> None:
    assert problem(receiving.post(BODY, method=method)) == (405, "method-not-allowed")


def test_bodies_beyond_the_limit_of_all_are_answered_503(receiving: Receiving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "REQUESTS_MAX_BYTES", len(BODY) - 1)
    answer = receiving.post(BODY)
    assert problem(answer) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    monkeypatch.undo()
    assert receiving.post(BODY).status == 200
