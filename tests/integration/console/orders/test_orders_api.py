"""The list, the search and the actions by the API and the pages, with hostile values, on a real gateway."""

import html
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from orderstream.api_gateway.orders.order_id import new_order_id
from orderstream.console.actions.log import REASON_MAX_CHARACTERS
from orderstream.console.orders import listing
from orderstream.console.orders import search as finding
from orderstream.console.orders.cancelling import cancel_order
from orderstream.console.orders.filters import OrderFilter
from orderstream.console.orders.listing import list_orders
from orderstream.console.orders.stored import read_stored
from orderstream.console.orders.waiting import Live, Rules, waiting_for
from orderstream.http_server.problems import Problem
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from tests.integration.api_gateway.conftest import Gateway, running
from tests.support.consoles import RunningConsole, running_console
from tests.support.databases import Databases
from tests.support.servers import Servers

HOSTILE = "<script>alert(1)</script>\"'><b onmouseover=x>{{ 7 * 7 }}\x1b[31m\u202e"
TRACE = "0af7651916cd43dd8448eb211c80319c"
BEGINNING = 5
"""This many first digits of an id are new every 3 days. Eight digits are new every 65 s, perhaps within a test."""
LINES = [{"sku": "SKU-1", "qty": 2, "price": "10.50"}]
ORDER = {"userId": HOSTILE, "items": LINES, "amount": "21.00", "currency": "USD"}


@pytest.fixture(scope="module")
def url(databases: Databases) -> Iterator[str]:
    """A migrated database for the tests of this module."""
    with databases.migrated() as migrated:
        yield migrated


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, url: str, servers: Servers) -> Iterator[Gateway]:
    """A gateway on the database of this module. No other service runs, so that orders stay open."""
    log: Path = tmp_path_factory.mktemp("gateway") / "log"
    with running(log, POSTGRES_URL=url, REDIS_URL=servers.redis_url, CACHE_BUDGET_SECONDS="1") as started:
        yield started


@pytest.fixture(scope="module")
def console(url: str, gateway: Gateway, kafka_brokers: str) -> Iterator[RunningConsole]:
    """A console on the database and the gateway of this module."""
    base_url = f"http://127.0.0.1:{gateway.port}"
    settings = {"postgres_url": url, "base_url": base_url, "kafka_brokers": kafka_brokers}
    with running_console(Settings.model_validate(settings)) as started:
        yield started


@pytest.fixture(autouse=True)
def rows(url: str) -> Iterator[Connection]:
    """A connection to the database of this module, which has no rows."""
    with connect(url, "test") as connection:
        connection.execute("TRUNCATE orders, outbox, operator_actions CASCADE")
        yield connection


def place(gateway: Gateway, **changes: Any) -> str:
    """Place an order by the API, and return its id."""
    headers = {"idempotency-key": changes.pop("key", "a-key"), "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    answer = gateway.client.post("/orders", json=ORDER | changes, headers=headers)
    assert answer.status_code == 201, answer.text
    order_id: str = answer.json()["orderId"]
    return order_id


def test_an_order_that_was_just_placed_is_the_first_of_the_list(console: RunningConsole, gateway: Gateway) -> None:
    place(gateway, key="first", userId="u-1")
    order_id = place(gateway)
    answer = console.get("/api/orders", limit=1)
    (order,) = answer["orders"]
    assert order["orderId"] == order_id
    assert (order["userId"], order["amount"], order["currency"], order["lines"]) == (HOSTILE, "21.00", "USD", 1)
    assert (order["status"], order["failureReason"], order["payment"], order["stock"]) == (
        *("PROCESSING", None, "none", "none"),
    )
    assert order["waitingFor"] == "outbox"
    assert answer["searched"]["complete"]
    (last,) = console.get("/api/orders", cursor=answer["next"])["orders"]
    assert last["userId"] == "u-1"
    hostile = quote(HOSTILE)
    assert console.get(f"/api/orders?status=PROCESSING,PAID&userId={hostile}")["orders"] == [order]
    assert console.get("/api/orders?status=PAID&status=PROCESSING&sku=SKU-1&stuck=false")["next"] is None
    assert console.get("/api/orders?status=&userId=&sku=&limit=&cursor=")["orders"] == [order, last]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("status=OPEN", "status"),
        ("status=PAID,", "status"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=1e3", "limit"),
        ("stuck=maybe", "stuck"),
        ("userId=" + "x" * 129, "userId"),
        ("userId=a%00b", "NUL"),
        ("userId=%ff", "query"),
        ("sku=" + "x" * 65, "sku"),
        ("failureReason=a'--", "failureReason"),
        ("minAgeSeconds=-1", "minAgeSeconds"),
        ("maxAgeSeconds=99999999999", "maxAgeSeconds"),
        ("minAgeSeconds=10&maxAgeSeconds=5", "minAgeSeconds"),
        ("traceId=xyz", "traceId"),
        ("cursor=!", "cursor"),
        ("cursor=MSc7IERST1A", "cursor"),
        ("user=u-1", "user"),
    ],
)
def test_a_bad_parameter_is_refused_with_its_name(console: RunningConsole, query: str, name: str) -> None:
    problem = console.get(f"/api/orders?{query}", status=400)
    assert name in problem["detail"]
    assert name in html.unescape(console.page(f"/orders?{query}", status=400))


def test_a_page_shows_hostile_text_as_text(console: RunningConsole, gateway: Gateway) -> None:
    order_id = place(gateway)
    for address in ("/orders", f"/search?q={order_id[:13]}", "/search?q=%3Cscript%3Ealert(1)%3C/script%3E"):
        page = console.page(address)
        assert "<script>alert" not in page
        assert "<b onmouseover" not in page
    assert html.escape("<script>alert(1)</script>", quote=False) in console.page("/orders")


def test_the_first_page_is_live_and_an_older_page_says_how_many_orders_are_newer(
    console: RunningConsole, gateway: Gateway
) -> None:
    assert "There is no order yet" in console.page("/orders")
    assert "No order matches this filter" in console.page("/orders?status=FAILED")
    for number in range(3):
        place(gateway, key=f"k-{number}")
    first = console.page("/orders?limit=2&status=PROCESSING")
    assert 'hx-trigger="every 1s"' in first
    (older,) = re.findall(r'href="(/orders\?[^"]+)" rel="next"', first)
    older = html.unescape(older)
    assert "To the newest orders" in console.page(older)
    place(gateway, key="k-3")
    place(gateway, key="k-4")
    page = console.page(older)
    assert "2 newer orders" in page
    assert 'href="/orders?status=PROCESSING&amp;limit=2"' in page
    assert page.count('class="row-link') == 1


def test_a_page_says_where_its_search_stopped_and_goes_on_from_there(
    console: RunningConsole, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = place(gateway, key="oldest", userId="u-9")
    for number in range(5):
        place(gateway, key=f"k-{number}")
    monkeypatch.setattr(listing, "SEARCHED_MAX", 3)
    answer = console.get("/api/orders", userId="u-9")
    assert (answer["orders"], answer["searched"]["orders"], answer["searched"]["complete"]) == ([], 3, False)
    further = console.get("/api/orders", userId="u-9", cursor=answer["next"], deep="true")
    assert [order["orderId"] for order in further["orders"]] == [found]
    page = console.page("/orders?userId=u-9")
    (address,) = re.findall(r'href="([^"]+)" rel="next">Search further back', page)
    page = console.page(html.unescape(address))
    assert found in page
    assert "hx-trigger" not in page, "a deep search is not repeated by itself"


def test_the_search_finds_an_order_by_each_of_its_names(console: RunningConsole, gateway: Gateway) -> None:
    order_id = place(gateway, key="the-key")
    place(gateway, key="other", userId="u-2", items=[{"sku": "SKU-2", "qty": 1, "price": "21.00"}])
    by = {
        order_id: "orderId",
        order_id.upper(): "orderId",
        order_id.replace("-", ""): "orderId",
        order_id[:-2]: "beginning",
        "the-key": "idempotencyKey",
    }
    for text, found_by in by.items():
        result = console.get("/api/search", q=text)
        assert [(hit["orderId"], hit["foundBy"]) for hit in result["orders"]] == [(order_id, found_by)]
        answer = console.client.get("/search", params={"q": f" {text} "}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/orders/{order_id}")
    assert len(console.get("/api/search", q=order_id[:BEGINNING])["orders"]) == 2
    assert {hit["foundBy"] for hit in console.get("/api/search", q=TRACE)["orders"]} == {"traceId"}
    for text, address in (("u-2", "/orders?userId=u-2"), ("SKU-2", "/orders?sku=SKU-2")):
        answer = console.client.get("/search", params={"q": text}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, address)
        assert console.get("/api" + address)["orders"]
    nothing = console.get("/api/search", q="no such thing")
    assert (nothing["orders"], nothing["address"]) == ([], None)
    assert "Nothing found for this text" in console.page("/search?q=no such thing")
    assert "Find an order by its id" in console.page("/search")


def test_the_beginning_of_an_id_finds_a_limited_number(
    console: RunningConsole, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [place(gateway, key=f"k-{number}") for number in range(3)]
    monkeypatch.setattr(finding, "IDS_MAX", 2)
    result = console.get("/api/search", q=ids[0][:BEGINNING])
    assert [hit["orderId"] for hit in result["orders"]] == sorted(ids, reverse=True)[:2]
    assert result["more"]
    assert "More order ids begin like this" in console.page(f"/search?q={ids[0][:BEGINNING]}")


@pytest.mark.parametrize("text", ["", "%00", "x" * 256, "%ff"])
def test_a_text_that_nothing_can_have_is_refused_by_the_search(console: RunningConsole, text: str) -> None:
    assert "400" in str(console.get(f"/api/search?q={text}", status=400)["status"])


def actions(rows: Connection) -> list[tuple[Any, ...]]:
    """Return the recorded actions, the oldest first."""
    return rows.execute("SELECT kind, subject, actor, reason, state FROM operator_actions ORDER BY id").fetchall()


def test_a_cancel_goes_through_the_gateway_and_is_recorded(
    console: RunningConsole, gateway: Gateway, rows: Connection
) -> None:
    order_id = place(gateway)
    done = console.post(f"/api/orders/{order_id.upper()}/cancel", {"reason": "the customer called"})
    assert (done["orderId"], done["status"]) == (order_id, "CANCELLED")
    assert actions(rows) == [("order.cancel", order_id, "Ada (operator)", "the customer called", "done")]
    traces = rows.execute("SELECT DISTINCT traceparent FROM outbox WHERE topic = 'order.aborted.v1'").fetchall()
    assert [trace.split("-")[1] for (trace,) in traces] == [done["traceId"]]
    (order,) = console.get("/api/orders", compensating="true")["orders"]
    assert (order["orderId"], order["waitingFor"]) == (order_id, "compensation")
    again = console.post(f"/api/orders/{order_id}/cancel", {"reason": "again"})
    assert again["status"] == "CANCELLED", "to cancel it again changes nothing"


def test_a_failed_order_cannot_be_cancelled_and_the_refusal_is_recorded(
    console: RunningConsole, gateway: Gateway, rows: Connection
) -> None:
    order_id = place(gateway)
    rows.execute("UPDATE orders SET status = 'FAILED', failure_reason = 'TIMED_OUT', payment = 'failed'")
    problem = console.post(f"/api/orders/{order_id}/cancel", {"reason": "why"}, status=409)
    assert problem["type"].endswith("order-failed")
    console.post(f"/api/orders/{new_order_id(0)}/cancel", {"reason": "why"}, status=404)
    console.post("/api/orders/no-id/cancel", {"reason": "why"}, status=404)
    assert [action[-1] for action in actions(rows)] == ["failed", "failed"]


def test_a_cancel_without_an_answer_says_that_it_may_have_worked(rows: Connection) -> None:
    with pytest.raises(Problem, match=r"503 .* may be cancelled or not\. You can safely cancel it again"):
        cancel_order(rows, "http://127.0.0.1:1", new_order_id(0), actor="Ada", reason="why")
    assert [action[-1] for action in actions(rows)] == ["failed"]


NO_REASONS = [{}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * (REASON_MAX_CHARACTERS + 1)}]


@pytest.mark.parametrize("body", [*NO_REASONS, {"reason": "x", "a": 1}])
@pytest.mark.parametrize("action", ["cancel", "nudge"])
def test_an_action_needs_a_reason(
    console: RunningConsole, gateway: Gateway, rows: Connection, action: str, body: dict[str, Any]
) -> None:
    order_id = place(gateway)
    console.post(f"/api/orders/{order_id}/{action}", body, status=400)
    if "a" not in body:
        console.submit(f"/orders/{order_id}/{action}", status=400, **{"reason": "", **body})
    assert actions(rows) == []
    assert console.reader.post(f"/api/orders/{order_id}/{action}", json={"reason": "why"}).status_code == 403
    assert console.client.get(f"/api/orders/{order_id}/{action}").status_code == 405


def next_times(rows: Connection) -> tuple[float, float | None]:
    """Return the seconds until the next check and the next attempt of the only order."""
    row = rows.execute(
        "SELECT extract(epoch FROM next_check_at - now())::float8, extract(epoch FROM next_attempt_at - now())::float8"
        " FROM orders LEFT JOIN payments ON order_id = id"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize(
    ("state", "away", "is_brought_forward"),
    [
        ("PENDING", 5, True),
        ("PENDING", 25, False),
        ("PENDING", 79, False),
        ("VOIDING", 3_600, True),
        ("VOIDING", 30, False),
    ],
)
def test_a_nudge_makes_the_check_due_and_leaves_an_attempt_alone_whose_call_may_run(  # noqa: PLR0917
    console: RunningConsole, gateway: Gateway, rows: Connection, state: str, away: int, is_brought_forward: bool
) -> None:
    order_id = place(gateway)
    rows.execute("DELETE FROM outbox")
    rows.execute(
        "INSERT INTO payments (order_id, state, attempts, next_attempt_at)"
        " VALUES (%s, %s, 1, now() + %s * interval '1 s')",
        (order_id, state, away),
    )
    done = console.post(f"/api/orders/{order_id}/nudge", {"reason": "why"})
    assert (done["checkIsDue"], done["attemptIsDue"]) == (True, is_brought_forward)
    check, attempt = next_times(rows)
    assert check <= 0
    assert attempt is not None
    assert (attempt <= 0) == is_brought_forward
    assert ("a call may be running" in done["text"]) != is_brought_forward
    assert actions(rows) == [("order.nudge", order_id, "Ada (operator)", "why", "done")]
    again = console.post(f"/api/orders/{order_id}/nudge", {"reason": "why"})
    assert (again["checkIsDue"], again["attemptIsDue"]) == (False, False)
    assert "was due already" in again["text"]


def test_a_nudge_says_why_the_watchdog_may_do_nothing(
    console: RunningConsole, gateway: Gateway, rows: Connection
) -> None:
    order_id = place(gateway)
    assert "waits in the outbox" in console.post(f"/api/orders/{order_id}/nudge", {"reason": "why"})["text"]
    rows.execute("DELETE FROM outbox")
    rows.execute(
        "INSERT INTO payments (order_id, state, next_attempt_at, pending_since) VALUES (%s, 'PENDING', now(), now())",
        (order_id,),
    )
    assert "has not decided" in console.post(f"/api/orders/{order_id}/nudge", {"reason": "why"})["text"]


def test_a_settled_order_has_nothing_to_nudge(console: RunningConsole, gateway: Gateway, rows: Connection) -> None:
    order_id = place(gateway)
    rows.execute("UPDATE orders SET status = 'CONFIRMED', payment = 'authorized', stock = 'reserved'")
    rows.execute("DELETE FROM outbox")
    before = next_times(rows)
    problem = console.post(f"/api/orders/{order_id}/nudge", {"reason": "why"}, status=409)
    assert problem["type"].endswith("nothing-to-nudge")
    assert next_times(rows)[0] > before[0] - 60
    assert actions(rows) == []
    console.post(f"/api/orders/{new_order_id(0)}/nudge", {"reason": "why"}, status=404)


def test_the_forms_of_the_pages_act_and_lead_back_to_the_order(
    console: RunningConsole, gateway: Gateway, rows: Connection
) -> None:
    order_id = place(gateway)
    texts = {"nudge": "The watchdog checks the order within a second.", "cancel": "The order is cancelled."}
    for action, text in texts.items():
        address = f"/orders/{order_id}/{action}"
        answer = console.client.post(address, data={"reason": "why"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, f"/orders/{order_id}")
        assert text in console.page(answer.headers["location"])
    assert [action[0] for action in actions(rows)] == ["order.nudge", "order.cancel"]


def test_the_list_and_the_page_of_an_order_agree_about_what_it_waits_for(rows: Connection) -> None:
    now = datetime.fromisoformat("2026-01-01T00:00:00Z")
    facts = {"PROCESSING": ("none", "none"), "PAID": ("authorized", "none"), "CONFIRMED": ("authorized", "reserved")}
    states = (None, "PENDING", "AUTHORIZED", "FAILED", "VOIDING", "VOIDED")
    for status, state, pending, attempts, reserved, waits in product(
        (*facts, "CANCELLED"), states, (False, True), (0, 1), (False, True), (False, True)
    ):
        order_id = new_order_id(1_700_000_000)
        payment, stock = facts.get(status, ("authorized", "none"))
        rows.execute(
            "INSERT INTO orders (id, user_id, amount, currency, status, payment, stock, aborted_at)"
            " VALUES (%s, 'u', 1, 'USD', %s, %s, %s, %s)",
            (order_id, status, payment, stock, now if status == "CANCELLED" else None),
        )
        if state is not None:
            due = now if state in ("PENDING", "VOIDING") else None
            rows.execute(
                "INSERT INTO payments (order_id, state, attempts, next_attempt_at, pending_since)"
                " VALUES (%s, %s, %s, %s, %s)",
                (order_id, state, attempts, due, now - timedelta(1) if pending else None),
            )
        if reserved:
            rows.execute("INSERT INTO reservations (order_id, state) VALUES (%s, 'RESERVED')", (order_id,))
        if waits:
            rows.execute(
                "INSERT INTO outbox (topic, order_id, event_id, value)"
                " VALUES ('order.created.v1', %s, gen_random_uuid(), '{}')",
                (order_id,),
            )
    rules = Rules.of(Settings.model_validate({}))
    kinds = set()
    cursor = None
    while True:
        page = list_orders(rows, OrderFilter(), limit=200, cursor=cursor)
        for order in page.orders:
            stored = read_stored(rows, order.order_id)
            assert stored is not None
            waiting = waiting_for(stored, rules, Live())
            assert order.waiting_for == (waiting.kind if waiting else None), stored
            kinds.add(order.waiting_for)
        cursor = page.next
        if cursor is None:
            break
    assert len(kinds) == 10
