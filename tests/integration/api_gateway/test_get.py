"""GET /orders/{id} at a real gateway."""

import statistics
import time
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import redis

from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Gateway, Start
from tests.support.bodies import README, order
from tests.support.servers import Servers

JSON = {"content-type": "application/json"}
BUDGET_SECONDS = 1.0
"""The time that Redis has to answer. A busy machine does not need all of it."""
GRACE_SECONDS = 5.0
"""The time that a busy machine may add to a limit."""


def place(gateway: Gateway, body: bytes = README) -> str:
    """Place an order and return its path."""
    return str(gateway.client.post("/orders", content=body, headers=JSON).headers["location"])


def settle(connection: Connection, path: str) -> None:
    """Confirm an order in the same way as the order-service."""
    connection.execute(
        "UPDATE orders SET status = 'CONFIRMED', version = 3, payment = 'authorized', stock = 'reserved',"
        " payment_at = '2026-01-02 03:04:05.678901Z', stock_at = '2026-01-02 03:04:06Z' WHERE id = %s",
        (path.removeprefix("/orders/"),),
    )


def test_an_open_order_is_answered_202(shared: Gateway, redis_url: str) -> None:
    path = place(shared)
    for _ in range(3):
        response = shared.client.get(path)
        assert response.status_code == 202
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["x-cache"] == "MISS"
        assert response.headers["etag"] == '"1"'
        assert response.json()["status"] == "PROCESSING"
        assert response.json()["payment"] == {"state": "none", "decidedAt": None}
    with redis.Redis.from_url(redis_url) as client:
        assert client.get(path.replace("/orders/", "order:")) is None


def test_a_paid_order_is_answered_202(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    rows.execute("UPDATE orders SET status = 'PAID', payment = 'authorized', version = 2")
    assert shared.client.get(path).status_code == 202


def test_the_first_read_of_a_settled_order_fills_the_cache(shared: Gateway, rows: Connection, redis_url: str) -> None:
    path = place(shared)
    assert shared.client.get(path).status_code == 202
    settle(rows, path)
    first, second = shared.client.get(path), shared.client.get(path)
    assert (first.status_code, first.headers["x-cache"]) == (200, "MISS")
    assert (second.status_code, second.headers["x-cache"]) == (200, "HIT")
    assert first.content == second.content
    assert first.headers["etag"] == second.headers["etag"] == '"3"'
    assert "retry-after" not in second.headers
    with redis.Redis.from_url(redis_url) as client:
        key = path.replace("/orders/", "order:")
        assert client.get(key) == first.content
        assert 60 <= int(client.ttl(key)) <= 120


def test_a_read_returns_every_member_of_the_order_exactly(shared: Gateway, rows: Connection) -> None:
    body = order(
        user='"Zoë"',
        items='[{"sku":"b","qty":2,"price":0.1},{"sku":"a","qty":1,"price":999999999999.99}]',
        amount="123456789012.30",
    )
    path = place(shared, body)
    settle(rows, path)
    response = shared.client.get(path)
    assert b'"amount":123456789012.30,' in response.content
    assert b'{"sku":"a","qty":1,"price":999999999999.99},{"sku":"b","qty":2,"price":0.10}' in response.content
    shown: Any = msgspec.json.decode(response.content)
    created_at = shown.pop("createdAt")
    assert created_at.endswith("Z")
    assert shown.pop("updatedAt") == created_at
    assert shown == {
        "orderId": path.removeprefix("/orders/"),
        "userId": "Zoë",
        "items": [
            {"sku": "a", "qty": 1, "price": 999999999999.99},
            {"sku": "b", "qty": 2, "price": 0.1},
        ],
        "amount": 123456789012.30,
        "currency": "USD",
        "status": "CONFIRMED",
        "failureReason": None,
        "version": 3,
        "payment": {"state": "authorized", "decidedAt": "2026-01-02T03:04:05.678901Z"},
        "stock": {"state": "reserved", "decidedAt": "2026-01-02T03:04:06Z"},
    }


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (order(amount="1e11", price='"1"'), b'"amount":100000000000.00,'),
        (order(amount="100000000000", price="1", currency='"JPY"'), b'"amount":100000000000,'),
        (order(amount="0.0001", price="1", currency='"CLF"'), b'"amount":0.0001,'),
    ],
)
def test_money_is_never_written_with_an_exponent(shared: Gateway, body: bytes, text: bytes) -> None:
    assert text in shared.client.get(place(shared, body)).content


def test_a_read_of_a_failed_order_returns_the_failure_reason(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    rows.execute(
        "UPDATE orders SET status = 'FAILED', failure_reason = 'OUT_OF_STOCK', stock = 'failed' WHERE id = %s",
        (path.removeprefix("/orders/"),),
    )
    response = shared.client.get(path)
    assert response.status_code == 200
    assert (response.json()["status"], response.json()["failureReason"]) == ("FAILED", "OUT_OF_STOCK")


def test_an_id_in_upper_case_is_the_same_order(shared: Gateway) -> None:
    path = place(shared)
    response = shared.client.get("/orders/" + path.removeprefix("/orders/").upper())
    assert response.json()["orderId"] == path.removeprefix("/orders/")


def test_head_is_answered_like_get_without_the_body(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    settle(rows, path)
    whole, head = shared.client.get(path), shared.client.head(path)
    assert head.status_code == 200
    assert head.content == b""
    for name in ("content-length", "content-type", "etag"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("path", ["/orders/01890a5d-ac96-774b-bcce-b302099a8057", "/orders/x", "/orders/"])
def test_an_unknown_order_is_not_found(shared: Gateway, path: str) -> None:
    for _ in range(2):
        response = shared.client.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("wanted", ['"3"', 'W/"3"', '"1", "3"', '"1" , W/"3"', "*"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_version_that_the_client_has_is_not_sent_again(
    shared: Gateway, rows: Connection, wanted: str, cached: bool
) -> None:
    path = place(shared)
    settle(rows, path)
    if cached:
        shared.client.get(path)
    response = shared.client.get(path, headers={"if-none-match": wanted})
    assert response.status_code == 304
    assert response.content == b""
    assert response.headers["etag"] == '"3"'
    assert response.headers["x-cache"] == ("HIT" if cached else "MISS")


@pytest.mark.parametrize("wanted", ['"2"', "3", '"33"', "", 'w/"3"'])
def test_a_version_that_the_client_does_not_have_is_sent(shared: Gateway, rows: Connection, wanted: str) -> None:
    path = place(shared)
    settle(rows, path)
    assert shared.client.get(path, headers={"if-none-match": wanted}).status_code == 200


def test_a_conditional_read_of_an_unchanged_open_order_is_answered_304_with_retry_after(shared: Gateway) -> None:
    response = shared.client.get(place(shared), headers={"if-none-match": '"1"'})
    assert response.status_code == 304
    assert "retry-after" in response.headers


def test_a_stored_amount_keeps_all_its_digits(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    rows.execute("UPDATE orders SET amount = %s WHERE id = %s", (Decimal("1E+20"), path.removeprefix("/orders/")))
    assert b'"amount":100000000000000000000,' in shared.client.get(path).content


def test_orders_are_accepted_and_read_in_every_state_of_redis(
    start: Start, servers: Servers, connection: Connection
) -> None:
    gateway = start(CACHE_BUDGET_SECONDS=str(BUDGET_SECONDS))
    settled = place(gateway)
    settle(connection, settled)
    assert gateway.client.get(settled).headers["x-cache"] == "MISS"
    durations: list[float] = []

    def use(expected: str) -> None:
        for _ in range(5):
            for path in (place(gateway), settled):
                started = time.monotonic()
                response = gateway.client.get(path)
                durations.append(time.monotonic() - started)
                assert response.status_code in (200, 202)
                assert response.headers["x-cache"] == expected
        assert gateway.client.get("/readyz").status_code == 200

    try:
        servers.valkey.pause()
        use("BYPASS")
    finally:
        servers.valkey.resume()
    try:
        servers.valkey.stop()
        use("BYPASS")
    finally:
        servers.valkey.start()
    assert max(durations) < BUDGET_SECONDS + GRACE_SECONDS
    assert statistics.median(durations) < BUDGET_SECONDS / 2, "most reads do not wait for Redis"
