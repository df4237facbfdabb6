"""The stock by the API and the pages: list, searches, changes with reason, hostile SKUs, and two operators at once."""

import html
import re
from collections.abc import Iterator
from typing import Any

import pytest

from orderstream.console.stock import read
from orderstream.console.stock.sku_keys import sku_key
from orderstream.domain.limits import UNITS_MAX
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from tests.support.consoles import RunningConsole, running_console
from tests.support.databases import Databases

SKUS = [
    "/",
    "..",
    "a/../b",
    "%2F",
    "%",
    "line\nbreak",
    "~QQ",
    "ä",
    "a",
    "ab",
    "A-1",
    "<script>alert(1)</script>",
    "\U0010ffff",
]


@pytest.fixture(scope="module")
def postgres_url(databases: Databases) -> Iterator[str]:
    """A migrated database for the tests of this module."""
    with databases.migrated() as url:
        yield url


@pytest.fixture(scope="module")
def console(postgres_url: str) -> Iterator[RunningConsole]:
    """A console on the database of this module."""
    with running_console(Settings.model_validate({"postgres_url": postgres_url})) as running:
        yield running


@pytest.fixture(autouse=True)
def stock(postgres_url: str) -> Iterator[Connection]:
    """SKUs of all kinds, with one unit each."""
    with connect(postgres_url, "test") as connection:
        connection.execute("TRUNCATE inventory")
        for sku in SKUS:
            connection.execute("INSERT INTO inventory VALUES (%s, 1, 2)", (sku,))
        yield connection


def _all(console: RunningConsole, **query: Any) -> list[str]:
    found: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = console.get("/api/stock", limit=2, cursor=cursor, **query)
        found += [sku["sku"] for sku in page["stock"]]
        cursor = page["next"]
    return found


def test_the_list_has_every_sku_once_in_the_order_of_bytes(console: RunningConsole) -> None:
    assert _all(console) == sorted(SKUS, key=str.encode)
    console.get("/api/stock", 400, limit=1_001)
    assert _all(console, q="a") == ["a", "a/../b", "ab"]
    assert _all(console, q="\U0010ffff") == ["\U0010ffff"]
    assert _all(console, q="A", match="part") == sorted((sku for sku in SKUS if "a" in sku.lower()), key=str.encode)


def test_a_search_that_stops_before_the_end_says_so(console: RunningConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "LOOKED_MAX", 3)
    page = console.get("/api/stock", q="ab", match="part")
    assert (page["stock"], page["stoppedAfter"]) == ([], 3)
    text = console.page("/stock?q=ab&match=part")
    assert "looked at 3 SKUs and stopped there" in text
    assert "contains this text" not in text
    assert _all(console, q="ab", match="part") == ["ab"]


@pytest.mark.parametrize("sku", SKUS)
def test_every_sku_is_set_and_added_to_by_its_address(console: RunningConsole, stock: Connection, sku: str) -> None:
    key = next(found["key"] for found in console.get("/api/stock")["stock"] if found["sku"] == sku)
    change = console.post(f"/api/stock/{key}/set", {"available": 7, "reason": "count", "expectedStocked": 3})
    assert change == {
        "actionId": change["actionId"], "sku": sku,
        "before": {"available": 1, "reserved": 2}, "after": {"available": 7, "reserved": 2},
    }  # fmt: skip
    page = console.submit(f"/stock/{key}/add", quantity="-3", reason="broken <b>")
    assert f"<h1>{html.escape(sku, quote=True).replace('&#x27;', '&#39;').replace('&quot;', '&#34;')}</h1>" in page
    assert "broken &lt;b&gt;" in page
    assert stock.execute("SELECT available, reserved FROM inventory WHERE sku = %s", (sku,)).fetchone() == (4, 2)
    shown = console.get(f"/api/stock/{key}")
    assert [(action["kind"], action["subject"], action["state"]) for action in shown["actions"]][:2] == [
        ("stock.add", sku, "done"), ("stock.set", sku, "done"),
    ]  # fmt: skip
    assert shown["actions"][0]["actor"] == "Ada (operator)"
    assert f'href="/stock/{key}"' in console.page("/stock")


def test_of_two_operators_the_second_must_look_again(console: RunningConsole, stock: Connection) -> None:
    seen = {"expectedStocked": 3, "reason": "count"}
    console.post("/api/stock/a/set", {"available": 9, **seen})
    refused = console.post("/api/stock/a/set", {"available": 4, **seen}, status=409)
    assert refused["detail"] == "a has 11 units (9 available) now: it changed after you read it. Nothing was changed."
    page = console.submit("/stock/a/set", 409, available="4", expectedStocked="3", reason="count")
    assert "it changed after you read it" in page
    assert re.search(r'name="expectedStocked" value="11"', page), "the form now has the units that the page shows"
    assert stock.execute("SELECT available FROM inventory WHERE sku = 'a'").fetchone() == (9,)
    states = [action["state"] for action in console.get("/api/actions", subject="a", kind="stock.set")["actions"]]
    assert states[:3] == ["failed", "failed", "done"], "each attempt is recorded"


def test_a_new_sku_has_a_page_and_is_created_once(console: RunningConsole) -> None:
    page = console.submit("/stock", sku="new/one")
    assert "This SKU does not exist" in page
    key = sku_key("new/one")
    assert "available for new orders" in console.submit(
        f"/stock/{key}/set", available="5", expectedStocked="", reason="first"
    )
    assert console.post(f"/api/stock/{key}/set", {"available": 1, "reason": "x", "expectedStocked": None}, 409)
    assert console.get(f"/api/stock/{key}")["stock"]["available"] == 5


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/stock/a/set", {"available": -1, "reason": "x"}, 400),
        ("/api/stock/a/set", {"available": 1, "reason": ""}, 400),
        ("/api/stock/a/set", {"available": 1, "reason": "x" * 501}, 400),
        ("/api/stock/a/set", {"available": 1}, 400),
        ("/api/stock/a/set", {"available": 1, "reason": "x", "more": 1}, 400),
        ("/api/stock/a/set", {"available": UNITS_MAX, "reason": "x"}, 409),
        ("/api/stock/a/add", {"quantity": -2, "reason": "x"}, 409),
        ("/api/stock/gone/add", {"quantity": -2, "reason": "x"}, 404),
        ("/api/stock/~!/add", {"quantity": 1, "reason": "x"}, 400),
        (f"/api/stock/{'x' * 65}/add", {"quantity": 1, "reason": "x"}, 400),
    ],
)
def test_a_wrong_change_changes_nothing(
    console: RunningConsole, stock: Connection, path: str, body: dict[str, object], status: int
) -> None:
    before = stock.execute("SELECT * FROM inventory ORDER BY sku").fetchall()
    console.post(path, body, status)
    assert stock.execute("SELECT * FROM inventory ORDER BY sku").fetchall() == before


def test_a_reader_sees_the_stock_and_changes_nothing(console: RunningConsole, stock: Connection) -> None:
    assert "You are logged in with the read-only token" in console.reader.get("/stock/a").text
    assert console.reader.post("/api/stock/a/add", json={"quantity": 1, "reason": "x"}).status_code == 403
    assert console.reader.post("/stock/a/add", data={"quantity": "1", "reason": "x"}).status_code == 403
    assert stock.execute("SELECT available FROM inventory WHERE sku = 'a'").fetchone() == (1,)
