"""POST /orders at a real gateway with a real database."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg
import pytest

from orderstream.domain.events import Item as EventItem
from orderstream.domain.events import OrderCreated, build
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Gateway, Start
from tests.support.bodies import BAD, GOOD, README, Bad, Good, order

JSON = {"content-type": "application/json"}


def count(rows: Connection) -> Any:
    return rows.execute(
        "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM order_items), (SELECT count(*) FROM outbox)"
    ).fetchone()


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD.keys())
def test_an_order_is_stored_with_its_items_and_its_event(shared: Gateway, rows: Connection, good: Good) -> None:
    response = shared.client.post("/orders", content=good.body, headers=JSON)
    assert response.status_code == 201, response.text
    assert response.headers["content-type"] == "application/json"
    order_id = response.json()["orderId"]
    assert response.json() == {"orderId": order_id}
    assert response.headers["location"] == f"/orders/{order_id}"

    stored = rows.execute(
        "SELECT user_id, amount, currency, status, version, created_at = updated_at, traceparent, created_at,"
        " next_check_at > now() FROM orders WHERE id = %s",
        (order_id,),
    ).fetchone()
    assert stored is not None
    assert stored[:6] == (good.user, good.amount, good.currency, "PROCESSING", 1, True)
    assert stored[6] == response.headers["traceresponse"]
    assert stored[8]
    items = rows.execute("SELECT sku, qty, price FROM order_items WHERE order_id = %s", (order_id,)).fetchall()
    assert sorted(items) == sorted(good.items)

    outbox = rows.execute(
        "SELECT topic, event_id::text, value, traceparent FROM outbox WHERE order_id = %s", (order_id,)
    ).fetchall()
    created = OrderCreated(
        order_id=order_id,
        user_id=good.user,
        items=tuple(EventItem(sku=sku, qty=qty, price=price) for sku, qty, price in good.items),
        amount=good.amount,
        currency=good.currency,
    )
    event = build(created, stored[7])
    assert outbox == [("order.created.v1", event.id, msgspec.json.encode(event).decode(), stored[6])]


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_body_stores_nothing(shared: Gateway, rows: Connection, bad: Bad) -> None:
    before = count(rows)
    response = shared.client.post("/orders", content=bad.body, headers=JSON)
    assert response.status_code == 400
    problem(response, "invalid-order")
    assert {error["pointer"] for error in response.json()["errors"]} == bad.pointers
    assert count(rows) == before


def problem(response: Any, name: str) -> None:
    """Check that a response is the problem with this name."""
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["type"] == f"urn:orderstream:problem:{name}"
    assert body["status"] == response.status_code
    assert body["traceId"] == response.headers["traceresponse"].split("-")[1]
    assert body["title"]
    assert body["detail"]


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON;charset=UTF-8", 'application/json; charset="utf-8"'],
)
def test_json_may_be_declared_with_a_utf_8_charset(shared: Gateway, content_type: str) -> None:
    response = shared.client.post("/orders", content=README, headers={"content-type": content_type})
    assert response.status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": ""},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/jsonx"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_other_media_types_are_refused(shared: Gateway, rows: Connection, headers: dict[str, str]) -> None:
    before = count(rows)
    response = shared.client.post("/orders", content=README, headers=headers)
    assert response.status_code == 415
    problem(response, "unsupported-media-type")
    assert count(rows) == before


def pieces(body: bytes) -> Iterator[bytes]:
    """Yield a body in pieces, so that the client sends it chunked."""
    for start in range(0, len(body), 64 * 1024):
        yield body[start : start + 64 * 1024]


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
def test_a_body_of_two_mebibytes_is_too_large(shared: Gateway, rows: Connection, chunked: bool) -> None:
    before = count(rows)
    body = order(more=',"note":"' + "x" * (2 << 20) + '"')
    response = shared.client.post("/orders", content=pieces(body) if chunked else body, headers=JSON)
    assert response.status_code == 413
    problem(response, "body-too-large")
    assert count(rows) == before
    assert shared.client.get("/livez").status_code == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
def test_a_body_of_exactly_one_mebibyte_is_not_too_large(shared: Gateway, chunked: bool) -> None:
    body = order(more=',"note":""')
    body = body[:-2] + b"x" * ((1 << 20) - len(body)) + body[-2:]
    assert len(body) == 1 << 20
    response = shared.client.post("/orders", content=pieces(body) if chunked else body, headers=JSON)
    assert response.status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/", 404, "not-found"),
        ("GET", "/nowhere", 404, "not-found"),
        ("POST", "/orders/", 404, "not-found"),
        ("GET", "/orders/%00", 404, "not-found"),
        ("GET", "/%00", 404, "not-found"),
        ("GET", "/orders/%ff%fe", 404, "not-found"),
        ("GET", "/orders/" + "x" * 5000, 404, "not-found"),
        ("GET", "/" + "x" * 5000, 404, "not-found"),
        ("GET", "/orders/..%2f..", 404, "not-found"),
        ("GET", "/docs/..%2f..%2fsettings.py", 404, "not-found"),
        ("GET", "/docs/nothing.js", 404, "not-found"),
        ("DELETE", "/nowhere", 404, "not-found"),
        ("GET", "/orders", 405, "method-not-allowed"),
        ("PUT", "/orders", 405, "method-not-allowed"),
        ("DELETE", "/orders/01890a5d-ac96-774b-bcce-b302099a8057", 405, "method-not-allowed"),
        ("POST", "/docs", 405, "method-not-allowed"),
    ],
)
def test_an_unknown_path_or_method_is_answered_with_a_problem(
    shared: Gateway, method: str, path: str, status: int, name: str
) -> None:
    response = shared.client.request(method, path)
    assert response.status_code == status
    problem(response, name)
    if status == 405:
        assert response.headers["allow"] == ("POST" if path == "/orders" else "GET, HEAD")


def test_a_clients_trace_is_continued(shared: Gateway, rows: Connection) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {**JSON, "traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "tracestate": "vendor=1"}
    response = shared.client.post("/orders", content=README, headers=headers)
    version, continued, span_id, _ = response.headers["traceresponse"].split("-")
    assert (version, continued) == ("00", trace_id)
    assert span_id != "b7ad6b7169203331"
    stored = "SELECT traceparent, tracestate FROM {} WHERE {} = %s"
    for table, column in (("orders", "id"), ("outbox", "order_id")):
        query = psycopg.sql.SQL(stored).format(psycopg.sql.Identifier(table), psycopg.sql.Identifier(column))
        found = rows.execute(query, (response.json()["orderId"],)).fetchone()
        assert found == (response.headers["traceresponse"], "vendor=1")


@pytest.mark.parametrize("traceparent", ["", "junk", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "\u00e4"])
def test_a_malformed_trace_is_replaced(shared: Gateway, traceparent: str) -> None:
    headers = {**JSON, "traceparent": traceparent.encode("latin-1")}
    assert shared.client.post("/orders", content=README, headers=headers).status_code == 201  # type: ignore[arg-type]


def test_the_health_and_metrics_pages_answer(shared: Gateway) -> None:
    assert shared.client.get("/livez").status_code == 200
    assert shared.client.get("/readyz").status_code == 200
    shared.client.post("/orders", content=README, headers=JSON)
    metrics = shared.client.get("/metrics").text
    assert 'orderstream_http_requests_total{route="POST /orders",status="201"}' in metrics
    assert "orderstream_group_commit_orders_count" in metrics
    assert "orderstream_queued_orders 0.0" in metrics


def test_a_request_writes_no_log_line(shared: Gateway) -> None:
    before = shared.log
    for body in (README, b"{}"):
        shared.client.post("/orders", content=body, headers=JSON)
    assert shared.log == before


def test_without_kafka_and_redis_the_gateway_is_ready_and_accepts_orders(start: Start) -> None:
    gateway = start(REDIS_URL="redis://127.0.0.1:1/0", KAFKA_BROKERS="127.0.0.1:1")
    assert gateway.client.get("/readyz").status_code == 200
    order_id = gateway.client.post("/orders", content=README, headers=JSON).json()["orderId"]
    response = gateway.client.get(f"/orders/{order_id}")
    assert (response.status_code, response.headers["x-cache"]) == (202, "BYPASS")


def test_without_postgres_the_gateway_is_alive_but_not_ready(start: Start) -> None:
    gateway = start(POSTGRES_URL="postgresql://nobody@127.0.0.1:1/orders")
    assert gateway.client.get("/livez").status_code == 200
    response = gateway.client.get("/readyz")
    assert response.status_code == 503
    problem(response, "unavailable")


def test_orders_of_many_clients_are_all_stored(start: Start, connection: Connection) -> None:
    gateway = start()
    bodies = [json.dumps({**json.loads(README), "userId": f"u-{number}"}).encode() for number in range(200)]
    request = b"".join(
        b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
        for body in bodies[:100]
    )
    with gateway.connect() as first, gateway.connect() as second:
        first.sendall(request)
        second.sendall(request.replace(b"u-", b"v-"))
        for sock in (first, second):
            received = b""
            while received.count(b'"orderId"') < 100:
                piece = sock.recv(65536)
                assert piece, received
                received += piece
            assert received.count(b"HTTP/1.1 201") == 100
    stored = connection.execute("SELECT count(*), count(DISTINCT user_id) FROM orders").fetchone()
    assert stored == (200, 200)
