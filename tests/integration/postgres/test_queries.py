"""Every statement fits the schema, and frequent statements use an index even while the tables are empty."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import ClientCursor

from orderstream.postgres.connect import Connection, connect
from tests.support.databases import Databases
from tests.support.queries import Query, queries

HOT_TABLES = {
    "dead_letters",
    "dead_letter_actions",
    "dead_letter_jobs",
    "orders",
    "order_items",
    "payments",
    "reservations",
    "outbox",
    "inventory",
}
PLANNED = [query for query in queries() if not query.utility]
# The promises are checked over whole tables when an operator runs the audit.
HOT = [query for query in PLANNED if query.room != "audit" or query.name in ("under_way", "payments_under_way")]
UTILITY = [query for query in queries() if query.utility]

# By (package, block): why the statement may read a whole table. No frequent statement may be listed here.
MAY_SCAN: dict[tuple[str, str], str] = {}


def _id(query: Query) -> str:
    return f"{query.room}-{query.name}"


@pytest.fixture(scope="module")
def empty(databases: Databases) -> Iterator[Connection]:
    """A connection like that of a service, to a database whose tables were never filled or analyzed."""
    with databases.migrated() as url, connect(url, "test") as opened:
        yield opened


@pytest.mark.parametrize("query", PLANNED, ids=_id)
def test_every_statement_can_be_prepared(empty: Connection, query: Query) -> None:
    empty.execute(f"PREPARE q AS {query.numbered}".encode())
    empty.execute("DEALLOCATE q")


@pytest.mark.parametrize("query", UTILITY, ids=_id)
def test_a_statement_without_a_plan_runs(empty: Connection, query: Query) -> None:
    assert "%" not in query.text, "such a statement takes no parameters"
    empty.execute(query.text.encode())


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _plan(connection: Connection, query: Query) -> list[dict[str, Any]]:
    # The simple protocol needs no parameters to explain the statement. The extended protocol would need them.
    explain = ClientCursor(connection).execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {query.numbered}".encode())
    row = explain.fetchone()
    assert row is not None
    return list(_nodes(row[0][0]["Plan"]))


@pytest.mark.parametrize("query", HOT, ids=_id)
def test_no_statement_scans_a_large_table(empty: Connection, query: Query) -> None:
    nodes = _plan(empty, query)
    scanned = {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} & HOT_TABLES
    whole_index = {
        node["Relation Name"]
        for node in nodes
        if node["Node Type"] in ("Index Scan", "Index Only Scan")
        and "Index Cond" not in node
        and "Limit" not in {other["Node Type"] for other in nodes}
        and not _partial(node["Index Name"])
    }
    if (query.room, query.name) in MAY_SCAN:
        assert scanned | whole_index, "it scans no whole table any more: remove it from the list"
        return
    assert not scanned | whole_index, json.dumps(nodes[0], indent=1)


def _partial(index: str) -> bool:
    """Say whether an index holds only the few rows with pending work."""
    return index in (
        "orders_open",
        "orders_uncompensated",
        "payments_due",
        "payments_due_by_lane",
        "orders_idempotency_key",
    )


def test_every_query_that_may_scan_a_table_exists() -> None:
    assert set(MAY_SCAN) <= {(query.room, query.name) for query in queries()}
