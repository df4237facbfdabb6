"""The parts that every response has, also after an error of its handler."""

import asyncio
from typing import Any

import msgspec
import pytest
from starlette.types import Message

from orderstream.http_server import problems
from orderstream.http_server.endpoint import (
    TRACESTATE_MAX_BYTES,
    DisconnectedError,
    Endpoint,
    Request,
    RequestHeaders,
    Response,
)
from orderstream.telemetry.tracing import Tracer
from tests.support.asgi import Answer, call

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


async def greet(_request: Request) -> Response:
    return Response(200, [(b"content-type", b"text/plain")], b"hello")


async def break_down(_request: Request) -> Response:
    raise KeyError("a bug")


async def be_cancelled(_request: Request) -> Response:
    raise asyncio.CancelledError


async def lose_the_client(_request: Request) -> Response:
    raise DisconnectedError


async def refuse(_request: Request) -> Response:
    raise problems.unavailable("Not now.")


def call_endpoint(handler: Any, method: str = "GET", **headers: str) -> Answer:
    return asyncio.run(call(Endpoint("/x", Tracer(None, 0), {"GET": handler}), method, "/x", headers=headers))


def test_a_response_has_its_length_and_its_trace() -> None:
    answer = call_endpoint(greet, traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01")
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["content-length"] == "5"
    assert answer.headers["traceresponse"].startswith(f"00-{TRACE_ID}-")


@pytest.mark.parametrize(("length", "kept"), [(TRACESTATE_MAX_BYTES, True), (TRACESTATE_MAX_BYTES + 1, False)])
def test_a_long_tracestate_is_dropped(length: int, kept: bool) -> None:
    seen: list[str | None] = []

    async def record(request: Request) -> Response:
        seen.append(request.span.context.tracestate)
        return Response(200, [])

    state = "a=" + "b" * (length - 2)
    call_endpoint(record, traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01", tracestate=state)
    assert seen == [state if kept else None]


def test_fields_with_one_name_are_joined_in_their_order() -> None:
    seen: list[RequestHeaders] = []

    async def record(request: Request) -> Response:
        seen.append(request.headers)
        return Response(200, [])

    async def scenario() -> None:
        fields = [(b"b", b"1"), (b"a", b"2"), (b"b", b"3"), (b"b", b"4")]
        scope = {"type": "http", "method": "GET", "path": "/x", "headers": fields}

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(_message: Message) -> None:
            return

        await Endpoint("/x", Tracer(None, 0), {"GET": record})(scope, receive, send)

    asyncio.run(scenario())
    assert seen == [{b"b": b"1, 3, 4", b"a": b"2"}]


def test_head_is_handled_as_get() -> None:
    assert call_endpoint(greet, "HEAD").headers["content-length"] == "5"


@pytest.mark.parametrize(
    ("handler", "method", "status"),
    [(break_down, "GET", 500), (be_cancelled, "GET", 503), (refuse, "GET", 503), (greet, "PUT", 405)],
)
def test_an_error_is_answered_with_a_problem_of_the_same_trace(handler: Any, method: str, status: int) -> None:
    answer = call_endpoint(handler, method)
    body = msgspec.json.decode(answer.body)
    assert answer.status == body["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["traceId"] == answer.headers["traceresponse"].split("-")[1]
    assert ("retry-after" in answer.headers) == (status == 503)


def test_the_response_to_a_bug_has_no_details() -> None:
    assert b"a bug" not in call_endpoint(break_down).body


def test_a_client_that_has_disconnected_gets_no_response() -> None:
    async def scenario() -> None:
        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(_message: Message) -> None:
            pytest.fail("the endpoint has sent a response")

        scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
        await Endpoint("/x", Tracer(None, 0), {"GET": lose_the_client})(scope, receive, send)

    asyncio.run(scenario())
