"""POST /orders/{id}/cancel: one transaction under the row lock, concurrent with every step of an order (P5 to P8)."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import psycopg
import pytest
import redis
from psycopg.conninfo import make_conninfo

from orderstream.api_gateway.session import Session
from orderstream.domain import events
from orderstream.domain.order import Order
from orderstream.postgres.connect import Connection
from orderstream.postgres.orders import SQL, locked
from tests.integration.api_gateway import application as in_process
from tests.integration.api_gateway.application import application
from tests.integration.api_gateway.conftest import Gateway, Start, elapsed
from tests.integration.api_gateway.proxy import proxy
from tests.integration.api_gateway.test_get import JSON, place, settle
from tests.integration.api_gateway.test_post import problem
from tests.integration.api_gateway.test_reader import PausingSession
from tests.integration.test_cache_refusals import REFUSALS
from tests.support.asgi import Answer, call
from tests.support.servers import Servers
from tests.support.waiting import wait_until

AT = "2026-01-02 03:04:05Z"
STATES = {
    "PROCESSING": ("none", "none"),
    "PROCESSING, reserved": ("none", "reserved"),
    "PAID": ("authorized", "none"),
    "CONFIRMED": ("authorized", "reserved"),
}
BLOCKED = "SELECT count(*) FROM pg_locks WHERE NOT granted"


def conninfo(connection: Connection) -> str:
    """Return a connection string for the same database. `dsn` alone has no password."""
    return make_conninfo(connection.info.dsn, password=connection.info.password)


def cancel(gateway: Gateway, path: str) -> Any:
    return gateway.client.post(f"{path}/cancel")


def set_state(rows: Any, path: str, /, *to: str | None) -> None:
    """Set the status, the payment, the stock and optionally the failure reason of an order."""
    status, payment, stock, reason = (*to, None)[:4]
    rows.execute(
        "UPDATE orders SET status = %s, payment = %s, stock = %s, failure_reason = %s, version = version + 1,"
        " payment_at = %s, stock_at = %s WHERE id = %s",
        (status, payment, stock, reason, AT, AT, path.removeprefix("/orders/")),
    )


def outbox_events(rows: Connection, path: str) -> list[Any]:
    """Return the outbox rows of an order in sequence, without its `order.created`."""
    return rows.execute(
        "SELECT topic, event_id::text, value, traceparent FROM outbox"
        " WHERE order_id = %s AND topic <> 'order.created.v1' ORDER BY id",
        (path.removeprefix("/orders/"),),
    ).fetchall()


def stored_order(rows: Connection, path: str) -> Order:
    """Return the stored order."""
    order_id = path.removeprefix("/orders/")
    orders, _ = locked(rows.execute(SQL["lock_orders"], {"ids": [order_id]}))
    return orders[order_id]


@pytest.mark.parametrize("state", STATES)
def test_a_cancelled_order_is_stored_with_its_update_and_its_abort(
    shared: Gateway, rows: Connection, state: str
) -> None:
    path = place(shared)
    payment, stock = STATES[state]
    set_state(rows, path, state.partition(",")[0], payment, stock)
    response = cancel(shared, path)
    assert response.status_code == 202, response.text
    shown = response.json()
    assert (shown["status"], shown["failureReason"], shown["version"]) == ("CANCELLED", None, 3)
    assert (shown["payment"]["state"], shown["stock"]["state"]) == (payment, stock)
    assert response.headers["etag"] == '"3"'

    order = stored_order(rows, path)
    assert order.state.status == "CANCELLED"
    assert order.aborted_at == order.updated_at
    expected = [events.order_updated(order), events.order_aborted(order)]
    assert outbox_events(rows, path) == [
        (events.topic_of(event.type), event.id, msgspec.json.encode(event).decode(), response.headers["traceresponse"])
        for event in expected
    ]
    assert shared.client.get(path).content == response.content


def test_cancelling_a_cancelled_order_changes_nothing(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    first = cancel(shared, path)
    before = stored_order(rows, path), outbox_events(rows, path)
    for _ in range(3):
        again = cancel(shared, path.upper().replace("ORDERS", "orders"))
        assert (again.status_code, again.content) == (202, first.content)
    assert (stored_order(rows, path), outbox_events(rows, path)) == before


def test_cancelling_a_failed_order_is_refused_and_leaves_it_failed(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    set_state(rows, path, "FAILED", "voided", "failed", "OUT_OF_STOCK")
    before = stored_order(rows, path)
    response = cancel(shared, path)
    assert response.status_code == 409
    problem(response, "order-failed")
    assert (stored_order(rows, path), outbox_events(rows, path)) == (before, [])


@pytest.mark.parametrize("path", ["/orders/01890a5d-ac96-774b-bcce-b302099a8057", "/orders/x", "/orders/%00"])
def test_an_unknown_order_is_not_found(shared: Gateway, path: str) -> None:
    response = cancel(shared, path)
    assert response.status_code == 404
    problem(response, "not-found")


def test_cancel_supports_post_only(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    assert shared.client.get(f"{path}/cancel").status_code == 405
    assert shared.client.post(f"{path}/cancel", content=b"anything", headers=JSON).status_code == 202


def test_a_cancelled_order_is_deleted_from_the_cache(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    settle(rows, path)
    assert [shared.client.get(path).headers["x-cache"] for _ in range(2)] == ["MISS", "HIT"]
    cancelled = cancel(shared, path)
    reads = [shared.client.get(path) for _ in range(2)]
    assert [read.headers["x-cache"] for read in reads] == ["MISS", "HIT"]
    assert {read.content for read in reads} == {cancelled.content}


async def post(api: Any, path: str) -> Answer:
    return await call(api, "POST", f"{path}/cancel")


def test_cancels_in_one_batch_each_get_their_own_answer(start: Start, connection: Connection, redis_url: str) -> None:
    gateway = start()
    open_paths = [place(gateway) for _ in range(10)]
    failed = place(gateway)
    set_state(connection, failed, "FAILED", "failed", "none", "PAYMENT_DECLINED")
    unknown = failed[:-1] + ("0" if failed[-1] != "0" else "1")
    paths = [*open_paths[:5], failed, unknown, *open_paths[5:], *open_paths]

    async def scenario() -> None:
        async with application(conninfo(connection), redis_url) as api:
            answers = await asyncio.gather(*(post(api, path) for path in paths))
            expected = [202] * 5 + [409, 404] + [202] * 15
            assert [answer.status for answer in answers] == expected

    asyncio.run(scenario())
    assert all(len(outbox_events(connection, path)) == 2 for path in open_paths)
    transactions = connection.execute("SELECT count(DISTINCT updated_at) FROM orders WHERE status = 'CANCELLED'")
    assert transactions.fetchone() in ((1,), (2,))


def test_an_order_cancelled_at_two_gateways_at_once_is_cancelled_once(start: Start, connection: Connection) -> None:
    gateways = [start(), start()]
    paths = [place(gateways[0]) for _ in range(10)]
    with ThreadPoolExecutor(16) as pool:
        responses = [pool.submit(cancel, gateway, path) for path in paths for gateway in gateways * 2]
    assert {response.result().status_code for response in responses} == {202}
    assert [len(outbox_events(connection, path)) for path in paths] == [2] * 10


@pytest.mark.parametrize(
    ("to", "status", "version"),
    [
        (("CONFIRMED", "authorized", "reserved", None), 202, 3),
        (("FAILED", "authorized", "failed", "OUT_OF_STOCK"), 409, 2),
        (("FAILED", "none", "none", "TIMED_OUT"), 409, 2),
        (("PAID", "authorized", "none", None), 202, 3),
    ],
    ids=["confirmed", "failed", "timed out", "paid"],
)
def test_the_row_lock_decides_between_a_cancel_and_another_change(
    shared: Gateway, rows: Connection, to: tuple[str | None, ...], status: int, version: int
) -> None:
    path = place(shared)
    responses: list[Any] = []
    canceller = threading.Thread(target=lambda: responses.append(cancel(shared, path)))
    with psycopg.connect(conninfo(rows)) as first:
        set_state(first, path, *to)
        canceller.start()
        wait_until(lambda: rows.execute(BLOCKED).fetchone() != (0,), 10, "the cancel waits for the row")
        first.commit()
    canceller.join()
    order = stored_order(rows, path)
    assert responses[0].status_code == status
    assert order.state.version == version
    assert order.state.status == ("CANCELLED" if status == 202 else to[0])
    assert len(outbox_events(rows, path)) == (2 if status == 202 else 0)


def test_a_paused_read_does_not_write_the_confirmed_order_into_the_cache(
    start: Start, connection: Connection, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place(start())
    settle(connection, path)
    sessions: list[PausingSession] = []

    def session(url: str, name: str, budget_seconds: float = 5.0) -> Any:
        if name != "reads":
            return plain(url, name, budget_seconds)
        sessions.append(PausingSession(url))
        return sessions[-1]

    plain = Session
    monkeypatch.setattr(in_process, "Session", session)

    async def scenario() -> None:
        dsn = conninfo(connection)
        async with application(dsn, redis_url) as paused, application(dsn, redis_url) as other:
            sessions[0].go.clear()
            early = asyncio.create_task(call(paused, "GET", path))
            await sessions[0].read.wait()
            cancelled = await post(other, path)
            assert cancelled.status == 202
            sessions[0].go.set()
            assert b'"CONFIRMED"' in (await early).body
            reads = [await call(api, "GET", path) for api in (paused, other, paused)]
            assert [read.headers["x-cache"] for read in reads] == ["MISS", "HIT", "HIT"]
            assert {read.body for read in reads} == {cancelled.body}

    asyncio.run(scenario())


@pytest.mark.parametrize("settled", [False, True])
def test_a_commit_whose_answer_was_lost_is_repeated_without_effect(
    start: Start, connection: Connection, redis_url: str, settled: bool
) -> None:
    gateway = start()
    warm_up, path = place(gateway), place(gateway)
    if settled:
        settle(connection, path)

    async def scenario() -> None:
        async with proxy(conninfo(connection)) as proxied, application(proxied.url, redis_url) as api:
            assert (await post(api, warm_up)).status == 202
            proxied.lose_answer_to = b"COMMIT"
            assert (await post(api, path)).status == 202
            assert proxied.lose_answer_to is None

    asyncio.run(scenario())
    assert stored_order(connection, path).state.status == "CANCELLED"
    assert len(outbox_events(connection, path)) == 2
    with redis.Redis.from_url(redis_url) as client:
        assert client.get(path.replace("/orders/", "order:")) is None


def assert_try_again(answer: Answer) -> None:
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert b"urn:orderstream:problem:unavailable" in answer.body


def test_without_postgres_the_answer_is_503_within_the_time_limit(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orderstream.api_gateway.routes.BUDGET_SECONDS", 0.3)

    async def scenario() -> None:
        async with application("postgresql://nobody@127.0.0.1:1/orders", redis_url) as api:
            assert_try_again(await post(api, "/orders/01890a5d-ac96-774b-bcce-b302099a8057"))

    assert 0.3 <= elapsed(lambda: asyncio.run(scenario())) < 4


def test_a_cancel_of_an_order_that_stays_locked_is_answered_503(
    start: Start, connection: Connection, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place(start())
    monkeypatch.setattr("orderstream.api_gateway.routes.BUDGET_SECONDS", 0.3)

    async def scenario() -> None:
        async with application(conninfo(connection), redis_url, budget_seconds=0.5) as api:
            assert_try_again(await post(api, path))

    with psycopg.connect(conninfo(connection)) as blocker:
        blocker.execute("SELECT FROM orders FOR UPDATE")
        assert 0.3 <= elapsed(lambda: asyncio.run(scenario())) < 4
    assert stored_order(connection, path).state.status == "PROCESSING"


def test_no_stale_order_is_read_after_redis_is_back(start: Start, servers: Servers, connection: Connection) -> None:
    gateway, other = start(CACHE_BUDGET_SECONDS="1"), start(CACHE_BUDGET_SECONDS="1")
    path = place(gateway)
    settle(connection, path)
    assert [gateway.client.get(path).headers["x-cache"] for _ in range(2)] == ["MISS", "HIT"]
    try:
        servers.valkey.pause()
        assert cancel(gateway, path).status_code == 202
        assert gateway.client.get(path).json()["status"] == "CANCELLED"
    finally:
        servers.valkey.resume()

    def from_the_cache() -> bool:
        reads = [gateway.client.get(path) for _ in range(2)]
        assert {read.json()["status"] for read in reads} == {"CANCELLED"}
        return reads[-1].headers["x-cache"] == "HIT"

    wait_until(from_the_cache, 70, "the cancelled order is cached")
    assert other.client.get(path).json()["status"] == "CANCELLED"


@pytest.mark.parametrize("how", REFUSALS)
def test_no_stale_order_is_read_while_redis_refuses_writes(
    start: Start, connection: Connection, redis_url: str, how: str
) -> None:
    gateways = [start(CACHE_BUDGET_SECONDS="1"), start(CACHE_BUDGET_SECONDS="1")]
    path = place(gateways[0])
    settle(connection, path)
    assert [gateway.client.get(path).headers["x-cache"] for gateway in gateways] == ["MISS", "HIT"]
    with redis.Redis.from_url(redis_url) as client, REFUSALS[how](client):
        assert b"CONFIRMED" in (client.get(path.replace("/orders/", "order:")) or b"")
        assert cancel(gateways[0], path).status_code == 202
        reads = [gateway.client.get(path) for gateway in gateways * 2]
        assert {read.json()["status"] for read in reads} == {"CANCELLED"}
        assert {read.headers["x-cache"] for read in reads} == {"BYPASS"}


def test_a_failed_delete_of_a_cache_entry_is_retried_without_a_further_request(
    start: Start, servers: Servers, connection: Connection, redis_url: str
) -> None:
    gateway = start(CACHE_BUDGET_SECONDS="1")
    path = place(gateway)
    settle(connection, path)
    gateway.client.get(path)
    key = path.replace("/orders/", "order:")
    with redis.Redis.from_url(redis_url) as client:
        assert client.exists(key)
        try:
            servers.valkey.pause()
            assert cancel(gateway, path).status_code == 202
        finally:
            servers.valkey.resume()
        wait_until(lambda: b"CONFIRMED" not in (client.get(key) or b""), 10, "the old entry is gone")
