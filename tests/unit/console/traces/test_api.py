"""Spans go in through the console's port with their own token, and come out through the API with the operator's."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from orderstream.console.app import application
from orderstream.console.context import Console
from orderstream.console.stores import Stores
from orderstream.console.traces.reader import address_elsewhere
from orderstream.console.traces.store import Link
from orderstream.console.web.access import Access
from orderstream.console.web.pages import StaticFiles, Templates
from orderstream.settings import load
from orderstream.telemetry.ingest import ingest_token
from tests.support.asgi import Answer, call
from tests.unit.console.traces.spans import encoded, request, stored, trace_id

OPERATOR = "the-token-of-the-operator"
READER = "the-token-of-the-reader"
ORDER = "01a2176d-9db0-73f7-9e75-000000000000"


class Serving:
    """The whole application of the console, without its servers."""

    def __init__(self) -> None:
        settings, static = load(), StaticFiles()
        templates = Templates(static, {"trace_ui_url": None, "is_local": False})
        self.console = Console(settings, Stores(settings), templates, None)
        self._app = application(self.console, static, Access(OPERATOR, READER, time.time))

    def call(self, method: str, path: str, body: bytes = b"", token: str = READER, **headers: str) -> Answer:
        given = {"host": "127.0.0.1:3100", "authorization": f"Bearer {token}"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return asyncio.run(call(self._app, method, path, [body], given))

    def json(self, path: str, status: int = 200) -> Any:
        answer = self.call("GET", path)
        assert answer.status == status, answer.body
        return msgspec.json.decode(answer.body)


@pytest.fixture
def serving() -> Serving:
    return Serving()


def send(serving: Serving, token: str) -> Answer:
    body = request(encoded()).SerializeToString()
    return serving.call("POST", "/v1/traces", body, token, content_type="application/x-protobuf")


def test_a_span_that_a_service_sends_can_be_read(serving: Serving) -> None:
    assert send(serving, ingest_token(OPERATOR)).status == 200
    found = serving.json(f"/api/traces/{trace_id(0).upper()}")
    assert found["trace"]["name"] == "POST /orders"
    assert [span["spanId"] for span in found["spans"]] == [b"12345678".hex()]


@pytest.mark.parametrize("token", [OPERATOR, READER, ingest_token(READER)])
def test_no_other_token_sends_spans(serving: Serving, token: str) -> None:
    assert send(serving, token).status == 401


@pytest.mark.parametrize("path", ["/api/traces?orderId=x", "/", "/api/openapi.json"])
def test_the_token_for_spans_opens_nothing_else(serving: Serving, path: str) -> None:
    assert serving.call("GET", path, token=ingest_token(OPERATOR)).status == 401


def test_a_trace_shows_its_order_its_drops_and_the_traces_that_link_to_it(serving: Serving) -> None:
    cancel = "POST /orders/{order_id}/cancel"
    serving.console.traces.add(
        [
            stored(0, 0, name="POST /orders", kind="SERVER"),
            stored(0, 1, parent_id=f"{1:016x}", service="order-service", error="no answer"),
            stored(1, 0, name=cancel, attributes={"order.id": ORDER}, links=(Link(trace_id(0), f"{1:016x}"),)),
        ]
    )
    found = serving.json(f"/api/traces/{trace_id(0)}")
    assert found["trace"] == {
        "traceId": trace_id(0),
        "name": "POST /orders",
        "startedAt": "2026-11-26T10:36:29Z",
        "durationNs": 1_000_000_001,
        "spans": 2,
        "services": ["order-service", "payment-worker"],
        "hasErrors": True,
    }
    assert (found["spansDropped"], found["orderIds"]) == (0, [ORDER])
    assert [linked["name"] for linked in found["linkedBy"]] == [cancel]
    traces = serving.json(f"/api/traces?orderId={ORDER}")
    assert traces["placedBy"] == trace_id(0)
    assert [trace["traceId"] for trace in traces["traces"]] == [trace_id(0), trace_id(1)]
    assert traces["store"]["traces"] == 2


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/api/traces/{trace_id(9)}", 404),
        ("/api/traces/<script>", 404),
        ("/api/traces", 400),
        ("/api/traces?orderId=x&limit=1", 400),
        (f"/api/traces?orderId={'x' * 200}", 400),
    ],
)
def test_a_wrong_request_has_a_clear_answer(serving: Serving, path: str, status: int) -> None:
    assert serving.json(path, status)["detail"]


def test_an_order_without_a_trace_has_an_empty_list(serving: Serving) -> None:
    found = serving.json("/api/traces?orderId=unknown")
    assert (found["placedBy"], found["traces"]) == (None, [])


def page(serving: Serving, trace: int, status: int = 200) -> str:
    answer = serving.call("GET", f"/traces/{trace_id(trace)}")
    assert answer.status == status
    return answer.body.decode()


def test_the_page_of_a_trace_links_its_orders_and_its_traces_and_escapes_what_a_span_carries(serving: Serving) -> None:
    bad = "<script>alert(1)</script>"
    serving.console.traces.add(
        [
            stored(0, name=bad, service=bad, error=bad, attributes={"order.id": bad, bad: bad}),
            stored(1, name="POST /orders/{order_id}/cancel", links=(Link(trace_id(0), f"{1:016x}"),)),
        ]
    )
    text = page(serving, 0)
    assert bad not in text
    assert f'href="/traces/{trace_id(1)}"' in text
    assert 'href="/orders/%3Cscript%3Ealert%281%29%3C/script%3E"' in text
    assert f'href="/traces/{trace_id(0)}"' in page(serving, 1)


def test_the_page_of_a_missing_trace_says_why(serving: Serving) -> None:
    assert "It keeps recent, sampled traces only." in page(serving, 9, 404)


@pytest.mark.parametrize("path", ["/traces/x", f"/traces/{'g' * 32}"])
def test_what_is_no_trace_id_has_no_page(serving: Serving, path: str) -> None:
    assert serving.call("GET", path).status == 404


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("https://jaeger.example/trace/{traceId}", f"https://jaeger.example/trace/{trace_id(0)}"),
        ("javascript:alert({traceId})", None),
        (None, None),
    ],
)
def test_a_trace_elsewhere_has_a_web_address_only(template: str | None, expected: str | None) -> None:
    assert address_elsewhere(template, trace_id(0)) == expected
    assert address_elsewhere(template, '"><script>') is None
