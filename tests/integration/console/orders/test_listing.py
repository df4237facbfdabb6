"""The list of orders: filters, keyset pages, bounded searches, and the index of each of them."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import asdict, replace
from psycopg import ClientCursor, Transaction
from psycopg.errors import QueryCanceled

from orderstream.api_gateway.orders.order_id import new_order_id
from orderstream.console.orders import listing
from orderstream.console.orders.cursor import from_cursor, to_cursor
from orderstream.console.orders.filters import STUCK_SECONDS, OrderFilter
from orderstream.console.orders.listing import SQL, ListedOrder, OrderPage, Source, count_newer, list_orders
from orderstream.http_server.problems import Problem
from orderstream.postgres.connect import Connection, connect
from tests.load.bench.console_rows import LARGE_USER, RARE_SKU, SMALL_USER, fill
from tests.support.databases import Databases
from tests.support.queries import Query

ORDERS = 20_000
WORK = "aborted_at IS NOT NULL AND NOT (payment IN ('failed', 'voided') AND stock = 'released')"

# ruff: noqa: S608 - the texts are constants of this module
# A filter, and the same condition as SQL.
FILTERS: dict[str, tuple[OrderFilter, str]] = {
    "all": (OrderFilter(), "TRUE"),
    "one status": (OrderFilter(statuses=("CONFIRMED",)), "status = 'CONFIRMED'"),
    "open": (OrderFilter(statuses=("PROCESSING", "PAID")), "status IN ('PROCESSING', 'PAID')"),
    "paid": (OrderFilter(statuses=("PAID",)), "status = 'PAID'"),
    "unsuccessful": (OrderFilter(statuses=("FAILED", "CANCELLED")), "status IN ('FAILED', 'CANCELLED')"),
    "cancelled": (OrderFilter(statuses=("CANCELLED",)), "status = 'CANCELLED'"),
    "mixed": (OrderFilter(statuses=("PAID", "FAILED")), "status IN ('PAID', 'FAILED')"),
    "reason": (OrderFilter(failure_reason="OUT_OF_STOCK"), "failure_reason = 'OUT_OF_STOCK'"),
    "contradiction": (OrderFilter(statuses=("PAID",), failure_reason="OUT_OF_STOCK"), "FALSE"),
    "large user": (OrderFilter(user_id=LARGE_USER), f"user_id = '{LARGE_USER}'"),
    "small user": (OrderFilter(user_id=SMALL_USER), f"user_id = '{SMALL_USER}'"),
    "rare sku": (OrderFilter(sku=RARE_SKU), f"id IN (SELECT order_id FROM order_items WHERE sku = '{RARE_SKU}')"),
    "age": (
        OrderFilter(min_age_seconds=86_400, max_age_seconds=172_800),
        "created_at BETWEEN now() - interval '2 days' AND now() - interval '1 day'",
    ),
    "stuck": (
        OrderFilter(stuck=True),
        f"status IN ('PROCESSING', 'PAID') AND (nudges > 0 OR updated_at < now() - interval '{STUCK_SECONDS} s')",
    ),
    "compensating": (OrderFilter(compensating=True), WORK),
    "compensating of a status": (OrderFilter(compensating=True, statuses=("FAILED",)), f"{WORK} AND status = 'FAILED'"),
    "failed of a user": (
        OrderFilter(statuses=("FAILED",), user_id=LARGE_USER, max_age_seconds=864_000),
        f"status = 'FAILED' AND user_id = '{LARGE_USER}' AND created_at >= now() - interval '10 days'",
    ),
    "trace": (OrderFilter(trace_id="c4ca4238a0b923820dcc509a6f75849b"), "traceparent LIKE '00-c4ca4238a0b923820dcc%%'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def filled(databases: Databases) -> Iterator[Connection]:
    """A database with orders of every kind, as the measurement has them."""
    with databases.migrated() as url:
        fill(url, ORDERS)
        with connect(url, "test") as connection:
            yield connection


def pages(connection: Connection, wanted: OrderFilter, limit: int) -> Iterator[OrderPage]:
    """Yield every page. Fail if they do not end."""
    cursor = None
    for _ in range(ORDERS):
        page = list_orders(connection, wanted, limit=limit, cursor=cursor)
        yield page
        if page.next is None:
            return
        cursor = page.next
    pytest.fail("the pages do not end")


def ids(found: Iterator[OrderPage]) -> list[str]:
    """Return the ids on all pages."""
    return [order.order_id for page in found for order in page.orders]


@pytest.mark.parametrize("name", FILTERS)
def test_the_pages_of_a_filter_have_each_order_once_and_newest_first(filled: Connection, name: str) -> None:
    wanted, condition = FILTERS[name]
    rows = filled.execute(f"SELECT id FROM orders WHERE {condition} ORDER BY id DESC LIMIT 450".encode())
    expected = [order_id for (order_id,) in rows]
    assert bool(expected) == (name not in ("contradiction", "compensating of a status"))
    found = list(itertools.islice(pages(filled, wanted, 200), 3))
    assert ids(iter(found))[: len(expected)] == expected
    assert all(page.searched.complete for page in found), "20,000 orders are within the limits of a search"
    if len(expected) < 400:
        assert found[-1].next is None
    if len(expected) < 70:
        assert ids(pages(filled, wanted, 7)) == expected


def test_a_listed_order_shows_its_row(filled: Connection) -> None:
    (order,) = list_orders(filled, OrderFilter(statuses=("FAILED",)), limit=1).orders
    row = filled.execute(
        "SELECT id, user_id, amount::text, currency, status, failure_reason, payment, stock, created_at, updated_at,"
        " (SELECT count(*) FROM order_items WHERE order_id = id), nudges FROM orders WHERE id = %s",
        (order.order_id,),
    ).fetchone()
    assert row is not None
    expected = ListedOrder(*row, *[False])
    assert expected == order


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Small limits of a search."""
    monkeypatch.setattr(listing, "PART_FIRST", 100)
    monkeypatch.setattr(listing, "SEARCHED_MAX", 700)
    return monkeypatch


@pytest.mark.usefixtures("bounds")
def test_a_search_stops_at_its_limit_and_goes_on_from_there(filled: Connection) -> None:
    wanted = OrderFilter(user_id=SMALL_USER)
    found = list(pages(filled, wanted, 50))
    assert [page.searched.orders for page in found[:3]] == [700, 700, 700]
    assert [page.searched.complete for page in found] == [False] * (len(found) - 1) + [True]
    assert sum(page.searched.orders for page in found) == ORDERS
    expected = filled.execute("SELECT id FROM orders WHERE user_id = %s ORDER BY id DESC", (SMALL_USER,)).fetchall()
    assert ids(iter(found)) == [order_id for (order_id,) in expected]
    until = [page.searched.until for page in found if page.searched.until]
    assert len(until) == len(found)
    assert until == sorted(until, reverse=True)
    row = filled.execute(
        "SELECT min(created_at) FROM (SELECT created_at FROM orders ORDER BY id DESC LIMIT 700) AS read"
    ).fetchone()
    assert row == (until[0],)


def test_a_search_begins_no_further_part_after_its_time(filled: Connection, bounds: pytest.MonkeyPatch) -> None:
    bounds.setattr(listing, "SEARCH_SECONDS", 0.0)
    page = list_orders(filled, OrderFilter(user_id="no such user"))
    assert (page.orders, page.searched.orders, page.searched.complete) == ((), 100, False)
    assert page.next is not None


def test_a_deep_search_has_limits_of_its_own(filled: Connection, bounds: pytest.MonkeyPatch) -> None:
    wanted = OrderFilter(user_id="no such user")
    bounds.setattr(listing, "DEEP_SEARCHED_MAX", 1_500)
    assert list_orders(filled, wanted, deep=True).searched.orders == 1_500
    bounds.setattr(listing, "DEEP_SEARCH_SECONDS", 0.0)
    assert list_orders(filled, wanted, deep=True).searched.orders == 100


SEARCH = SQL["search"]


def _slow(sources: list[Source]) -> str:
    """Return the statement of a search that takes 30 s for these sources."""
    slow = ", ".join(f"'{source}'" for source in sources)
    head, tail = SEARCH.rsplit("\n) AS part", 1)
    return f"{head}\n) AS part, LATERAL (SELECT CASE WHEN %(source)s IN ({slow}) THEN pg_sleep(30) END) AS wait{tail}"


def test_a_slow_index_of_pending_work_is_replaced_by_a_search(
    filled: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a snapshot is held, these indexes may have millions of dead entries."""
    wanted = OrderFilter(statuses=("PROCESSING", "PAID"))
    expected = list_orders(filled, wanted, limit=20).orders
    monkeypatch.setattr(listing, "STATEMENT_SECONDS", 0.3)
    monkeypatch.setitem(SQL, "search", _slow(["open"]))
    page = list_orders(filled, wanted, limit=20)
    assert page.orders == expected
    monkeypatch.setitem(SQL, "search", _slow(["open", "all"]))
    with pytest.raises(QueryCanceled):
        list_orders(filled, wanted)


def test_a_part_whose_savepoint_cannot_end_in_time_ends_the_search(
    filled: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends a RELEASE only if its process gets no CPU at that moment. A slow statement stands for it."""
    monkeypatch.setattr(listing, "STATEMENT_SECONDS", 0.3)
    monkeypatch.setattr(Transaction, "_get_commit_commands", lambda _: [b"SELECT pg_sleep(10)"])
    with pytest.raises(QueryCanceled):
        list_orders(filled, OrderFilter(statuses=("PROCESSING", "PAID")), limit=20)
    # The pool of the console does the same before it lends the connection again.
    filled.rollback()


def test_many_orders_with_pending_work_are_searched_newest_first(
    filled: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = OrderFilter(statuses=("PROCESSING", "PAID"))
    expected = list_orders(filled, wanted, limit=50)
    assert expected.searched.orders > 500, "all of them were read"
    monkeypatch.setattr(listing, "PENDING_MAX", 100)
    page = list_orders(filled, wanted, limit=50)
    assert page.orders == expected.orders
    assert page.searched.orders == 500


def _place(connection: Connection, number: int, second: float) -> list[str]:
    """Insert orders that a gateway accepts at this time. Return their ids."""
    made = sorted(new_order_id(second) for _ in range(number))
    connection.execute(
        "INSERT INTO orders (id, user_id, amount, currency) SELECT id, 'u', 1.50, 'USD' FROM unnest(%s::text[]) AS id",
        (made,),
    )
    return made


def test_no_order_is_shown_twice_or_missed_while_others_are_inserted(connection: Connection, postgres_url: str) -> None:
    placed = [order_id for second in range(100) for order_id in _place(connection, 10, 1_700_000_000 + second)]
    stop = threading.Event()

    def insert() -> None:
        with connect(postgres_url, "test") as other:
            for second in itertools.count(1_700_000_050):
                _place(other, 5, second)
                if stop.is_set():
                    return

    inserting = threading.Thread(target=insert)
    inserting.start()
    try:
        found = ids(pages(connection, OrderFilter(), 20))
    finally:
        stop.set()
        inserting.join()
    assert found == sorted(set(found), reverse=True)
    assert set(placed) <= set(found)


def test_newer_orders_are_counted_up_to_a_limit(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, *_ = _place(connection, 1, 1_700_000_000)
    assert count_newer(connection, OrderFilter(), oldest) == 0
    _place(connection, 12, 1_700_000_001)
    assert count_newer(connection, OrderFilter(), oldest) == 12
    assert count_newer(connection, OrderFilter(user_id="u"), oldest) == 12
    assert count_newer(connection, OrderFilter(user_id="v"), oldest) == 0
    monkeypatch.setattr(listing, "NEWER_MAX", 5)
    assert count_newer(connection, OrderFilter(), oldest) == 5


def test_an_age_is_that_of_postgres_although_the_clock_of_a_gateway_differs(connection: Connection) -> None:
    row = connection.execute("SELECT extract(epoch FROM now())::float8").fetchone()
    assert row is not None
    for skew in (-50, 0, 50):
        _place(connection, 1, row[0] - 100 + skew)
    connection.execute("UPDATE orders SET created_at = now() - interval '100 s'")
    assert not list_orders(connection, OrderFilter(max_age_seconds=90)).orders
    assert not list_orders(connection, OrderFilter(min_age_seconds=160)).orders
    assert len(list_orders(connection, OrderFilter(min_age_seconds=95, max_age_seconds=160)).orders) == 3


def test_a_cursor_goes_through_a_url_and_holds_only_the_id() -> None:
    order_id = new_order_id(1_700_000_000)
    cursor = to_cursor(order_id)
    assert from_cursor(cursor) == order_id
    assert cursor.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize("cursor", ["", "g", "Zw", "MQ", "!", "a" * 101, "MicgT1IgMT0x", "MTAx'", "MTAxé", "\x00"])
def test_a_text_that_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(Problem, match="400 invalid-cursor"):
        from_cursor(cursor)


# By source: the filter, and the index that serves it.
SOURCES: dict[Source, tuple[OrderFilter, str]] = {
    "all": (OrderFilter(user_id="no such user", sku="none"), "orders_pkey"),
    "unsuccessful": (OrderFilter(statuses=("CANCELLED",)), "orders_unsuccessful"),
    "reason": (OrderFilter(failure_reason="OUT_OF_STOCK"), "orders_failed_by_reason"),
    "open": (OrderFilter(stuck=True), "orders_open"),
    "uncompensated": (OrderFilter(compensating=True), "orders_uncompensated"),
}


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_served_by_its_index_and_reads_no_more_than_it_may(
    filled: Connection, source: Source, mode: str
) -> None:
    wanted, index = SOURCES[source]
    parameters = {
        **asdict(replace(wanted, statuses=())),
        "statuses": list(wanted.statuses),
        "stuck_seconds": STUCK_SECONDS,
        "source": source,
        "before": "g",
        "rows": 300,
        "matches": 51,
    }
    query = Query("console", "search", SQL["search"])
    values = ", ".join(f"%({name})s" for name in query.names)
    with filled.transaction(force_rollback=True):
        filled.execute(f"SET LOCAL plan_cache_mode = {mode}".encode())
        filled.execute(SQL["limit_search"], {"limit": "10s"})
        cursor = ClientCursor(filled)
        cursor.execute(f"PREPARE q AS {query.numbered}".encode())
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE q ({values})".encode(), parameters)
        row = cursor.fetchone()
        filled.execute("DEALLOCATE q")
    assert row is not None
    scans = [
        node for node in _nodes(row[0][0]["Plan"]) if node.get("Relation Name") == "orders" and node["Actual Loops"]
    ]
    assert [node.get("Index Name") for node in scans] == [index]
    assert scans[0]["Node Type"] == "Index Scan"
    assert scans[0]["Actual Rows"] + scans[0].get("Rows Removed by Filter", 0) <= 300
    assert not [node for node in _nodes(row[0][0]["Plan"]) if node["Node Type"] == "Seq Scan"]
