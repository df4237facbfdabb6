"""Conditional requests (RFC 9110, 13): reads, and cancels, which check the condition under the row lock."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from orderstream.api_gateway.orders.canceller import Cancellation, Canceller, PreconditionFailedError
from orderstream.api_gateway.orders.reader import OrderDocument
from orderstream.api_gateway.session import Session
from orderstream.cache import AsyncCache
from orderstream.http_server.conditions import Condition
from orderstream.postgres.connect import Connection
from orderstream.telemetry.tracing import NO_TRACE
from tests.integration.api_gateway.conftest import Gateway
from tests.integration.api_gateway.proxy import proxy
from tests.integration.api_gateway.test_cancel import outbox_events, set_state, stored_order
from tests.integration.api_gateway.test_get import JSON, place, settle
from tests.integration.api_gateway.test_post import count, problem
from tests.support.bodies import README
from tests.support.servers import Servers

UNKNOWN = "/orders/01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if-none-match": "CURRENT"}, 304),
        ({"if-none-match": "W/CURRENT"}, 304),
        ({"if-none-match": '"x,y", CURRENT'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"other", "CURRENT,"'}, None),
        ({"if-match": "CURRENT"}, None),
        ({"if-match": '"x", CURRENT'}, None),
        ({"if-match": "*"}, None),
        ({"if-match": "W/CURRENT"}, 412),
        ({"if-match": '"other"'}, 412),
        ({"if-match": "malformed"}, 412),
        ({"if-match": "CURRENT", "if-none-match": "CURRENT"}, 304),
        ({"if-match": '"other"', "if-none-match": "CURRENT"}, 412),
        ({"if-modified-since": "Thu, 26 Nov 2099 00:00:00 GMT"}, None),
        ({"if-unmodified-since": "Thu, 26 Nov 1999 00:00:00 GMT"}, None),
    ],
    ids=str,
)
def test_a_conditional_read_returns_the_order_or_304_or_412(  # noqa: PLR0917 - a table of cases
    shared: Gateway, rows: Connection, method: str, settled: bool, headers: dict[str, str], status: int | None
) -> None:
    path = place(shared)
    if settled:
        settle(rows, path)
    etag = shared.client.get(path).headers["etag"]
    response = shared.client.request(
        method, path, headers={name: value.replace("CURRENT", etag) for name, value in headers.items()}
    )
    assert response.status_code == (status or (200 if settled else 202))
    if status == 412:
        assert response.headers["content-type"] == "application/problem+json"
        assert method == "HEAD" or response.json()["type"].endswith(":precondition-failed")
    else:
        assert response.headers["etag"] == etag
        assert response.headers["cache-control"] == "no-cache"
        assert bool(response.content) == (method == "GET" and status is None)


def test_conditions_on_an_unknown_order_are_ignored(shared: Gateway, rows: Connection) -> None:
    """A condition is ignored if the response without it would be an error (RFC 9110, 13.2.1)."""
    for headers in ({"if-match": "*"}, {"if-none-match": "*"}):
        assert shared.client.get(UNKNOWN, headers=headers).status_code == 404
        assert shared.client.post(f"{UNKNOWN}/cancel", headers=headers).status_code == 404
    path = place(shared)
    set_state(rows, path, "FAILED", "voided", "failed", "OUT_OF_STOCK")
    problem(shared.client.post(f"{path}/cancel", headers={"if-match": '"1"'}), "order-failed")


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"if-match": '"2"'}, True),
        ({"if-match": '"1", "2"'}, True),
        ({"if-match": "*"}, True),
        ({"if-none-match": '"1"'}, True),
        ({"if-match": '"1"'}, False),
        ({"if-match": 'W/"2"'}, False),
        ({"if-match": "2"}, False),
        ({"if-match": '"1,2"'}, False),
        ({"if-none-match": "*"}, False),
        ({"if-none-match": 'W/"2"'}, False),
        ({"if-match": '"2"', "if-none-match": '"2"'}, False),
    ],
    ids=str,
)
def test_a_conditional_cancel_cancels_the_order_or_returns_412(
    shared: Gateway, rows: Connection, headers: dict[str, str], allowed: bool
) -> None:
    path = place(shared)
    set_state(rows, path, "PAID", "authorized", "none")
    before = stored_order(rows, path)
    response = shared.client.post(f"{path}/cancel", headers=headers)
    if allowed:
        assert (response.status_code, response.headers["etag"]) == (202, '"3"')
        assert stored_order(rows, path).state.status == "CANCELLED"
    else:
        assert response.status_code == 412
        problem(response, "precondition-failed")
        assert (stored_order(rows, path), outbox_events(rows, path)) == (before, [])


def test_concurrent_cancels_of_one_version_all_get_the_same_answer(shared: Gateway, rows: Connection) -> None:
    path = place(shared)
    tags = ['"1"', '"2"', None, '"9"'] * 4

    def cancel(tag: str | None) -> Any:
        return shared.client.post(f"{path}/cancel", headers={} if tag is None else {"if-match": tag})

    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(cancel, tags))
    order = stored_order(rows, path)
    assert (order.state.status, order.state.version) == ("CANCELLED", 2)
    assert len(outbox_events(rows, path)) == 2
    for tag, response in zip(tags, responses, strict=True):
        assert response.status_code in {None: (202,), '"9"': (412,)}.get(tag, (202, 412))
        if response.status_code == 202:
            assert response.headers["etag"] == '"2"'


def test_the_condition_of_a_cancel_is_checked_under_the_row_lock(
    shared: Gateway, rows: Connection, shared_url: str
) -> None:
    """If the order changes before the cancel gets the lock, the condition applies to the new version."""
    path = place(shared)
    with ThreadPoolExecutor(1) as pool, rows.transaction():
        set_state(rows, path, "PAID", "authorized", "none")
        waiting = pool.submit(shared.client.post, f"{path}/cancel", headers={"if-match": '"1"'})
        while not rows.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall():
            assert not waiting.done()
    assert waiting.result().status_code == 412
    assert stored_order(rows, path).state.status == "PAID"


def test_a_conditional_cancel_that_is_repeated_after_its_commit_succeeds(
    postgres_url: str, connection: Connection, servers: Servers
) -> None:
    order_id = UNKNOWN.removeprefix("/orders/")
    connection.execute("INSERT INTO orders (id, user_id, amount, currency) VALUES (%s, 'u', 1, 'USD')", (order_id,))
    own = Cancellation(order_id, NO_TRACE, Condition(if_match=(b'"1"',)))
    late = Cancellation(order_id, NO_TRACE, Condition(if_match=(b'"1"', b'"7"')))

    async def scenario() -> tuple[OrderDocument | None, BaseException]:
        cache = AsyncCache(servers.redis_url, 1)
        async with (
            proxy(postgres_url) as proxied,
            Session(proxied.url, "cancels") as session,
            Canceller(session, cache, waiting_limit=10) as canceller,
        ):
            assert (await canceller.cancel(Cancellation("x", NO_TRACE))).document is None
            proxied.lose_answer_to = b"COMMIT"
            document = (await canceller.cancel(own)).document
            (refused,) = await asyncio.gather(canceller.cancel(late), return_exceptions=True)
            assert isinstance(refused, BaseException)
            await cache.close()
            return document, refused

    document, refused = asyncio.run(scenario())
    assert document is not None
    assert document.version == 2
    assert isinstance(refused, PreconditionFailedError)


def test_a_new_order_with_if_match_is_refused(shared: Gateway, rows: Connection) -> None:
    before = count(rows)
    for tag in ("*", '"1"'):
        response = shared.client.post("/orders", content=README, headers={**JSON, "if-match": tag})
        assert response.status_code == 412
    assert count(rows) == before
    assert shared.client.post("/orders", content=README, headers={**JSON, "if-none-match": "*"}).status_code == 201


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/start.js"])
def test_on_a_page_without_an_entity_tag_only_the_condition_star_matches(shared: Gateway, path: str) -> None:
    cases = [
        ({"if-match": '"1"'}, 412),
        ({"if-match": ""}, 412),
        ({"if-match": "*"}, 200),
        ({"if-none-match": '"1", ""'}, 200),
        ({"if-none-match": "*"}, 304),
        ({"if-match": '"1"', "if-none-match": "*"}, 412),
    ]
    for headers, status in cases:
        for method in ("GET", "HEAD"):
            assert shared.client.request(method, path, headers=headers).status_code == status
    assert shared.client.get("/docs/nothing", headers={"if-match": '"1"'}).status_code == 404


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", UNKNOWN, "/nowhere"])
def test_responses_that_may_change_forbid_caching(shared: Gateway, path: str) -> None:
    assert shared.client.get(path).headers["cache-control"] == "no-store"


def test_a_405_forbids_caching(shared: Gateway) -> None:
    response = shared.client.delete("/orders")
    assert (response.status_code, response.headers["allow"], response.headers["cache-control"]) == (
        405,
        "POST",
        "no-store",
    )


def test_the_accept_field_has_no_effect(shared: Gateway) -> None:
    """RFC 9110, 12.4.1 allows this. An order has only one representation."""
    path = place(shared)
    for accept in ("text/html", "application/xml;q=1, */*;q=0", ""):
        response = shared.client.get(path, headers={"accept": accept})
        assert (response.status_code, response.headers["content-type"]) == (202, "application/json")
