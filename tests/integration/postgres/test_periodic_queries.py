"""With a million waiting rows of each kind, each periodic query reads a bounded number of rows."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import ClientCursor, sql

from orderstream.order_service.watchdog import ROWS_PER_RUN, WatchdogSchedule
from orderstream.payment_worker.attempts import CLAIM_ROWS
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.sql import load
from orderstream.worker.due_scan import FLOOR
from tests.support.databases import Databases
from tests.support.queries import Query, queries

MILLION = 1_000_000
SCHEDULE = WatchdogSchedule()
LATER = datetime.now(UTC) + timedelta(days=1)
DUE = {"after": FLOOR, "upto": LATER, "limit": ROWS_PER_RUN, "passed": LATER}

# One statement for each table. A million orders are open and a million are aborted. All have been due for long.
FILL = (
    """
    INSERT INTO orders (id, user_id, amount, currency, status, aborted_at, next_check_at, created_at, updated_at)
    SELECT lower(status) || '-' || number, 'u', 1, 'USD', status, CASE WHEN status = 'CANCELLED' THEN at END, at, at, at
    FROM generate_series(1, %(million)s) AS number,
         LATERAL (SELECT now() - interval '1 hour' - number * interval '1 ms' AS at) AS past,
         unnest(ARRAY['PROCESSING', 'CANCELLED']) AS status

    """,
    """
    INSERT INTO payments (order_id, state, next_attempt_at, decided_at)
    SELECT id, 'VOIDING', next_check_at, next_check_at FROM orders WHERE status = 'CANCELLED'
    """,
    """
    INSERT INTO outbox (topic, order_id, event_id, value)
    SELECT 'order.created.v1', 'another-' || number, gen_random_uuid(), '{}'
    FROM generate_series(1, %(million)s) AS number
    """,
)

# By (package, block): its parameters, and the number of rows that it may read, a few for each row that it may claim.
PERIODIC: dict[tuple[str, str], tuple[dict[str, Any], int]] = {
    ("order_service", "now"): ({}, 0),
    ("order_service", "any_stalled"): (DUE, 1),
    ("order_service", "claim_stalled"): (
        DUE
        | {
            "first_seconds": SCHEDULE.first_seconds,
            "longest_seconds": SCHEDULE.longest_seconds,
            "deadline_seconds": SCHEDULE.deadline_seconds,
            "deadline_nudges": SCHEDULE.deadline_nudges,
            "pending_seconds": SCHEDULE.pending_seconds,
        },
        8 * ROWS_PER_RUN,
    ),
    ("order_service", "any_uncompensated"): (DUE, 1),
    ("order_service", "claim_uncompensated"): (DUE, 8 * ROWS_PER_RUN),
    ("order_service", "oldest_uncompensated"): ({"after": FLOOR}, 2),
    ("order_service", "published_until"): ({}, 2),
    ("payment_worker", "now"): ({}, 0),
    ("payment_worker", "claim_due"): (
        DUE | {"lane": "void", "limit": CLAIM_ROWS, "push_seconds": 30.0, "oldest_seconds": 3_600.0},
        8 * CLAIM_ROWS,
    ),
    ("payment_worker", "oldest_voiding"): ({"after": FLOOR}, 2),
    ("outbox_relay", "claim"): ({"after": 0, "upto": 2**62, "limit": 500, "bytes": 4 << 20}, 8 * 500),
    ("outbox_relay", "depth"): ({"low": 0}, 100_010),
    ("outbox_relay", "old_orders"): ({"after": "", "days": 1, "limit": 100, "every_order": True}, 1_000),
    ("api_gateway", "outbox_exceeds"): ({"limit": 1_000}, 1_010),
    ("api_gateway", "settled_of"): ({"ids": [f"processing-{number}" for number in range(100)]}, 100),
}  # fmt: skip
QUERIES = [query for query in queries() if (query.room, query.name) in PERIODIC]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def full(databases: Databases) -> Iterator[Connection]:
    """A database with a million open orders, a million aborted ones, a million payments due, and a full outbox."""
    with databases.migrated() as url, connect(url, "test") as connection:
        connection.execute("SET statement_timeout = 0")
        # Otherwise Postgres would check millions of foreign keys one by one.
        connection.execute("SET session_replication_role = replica")
        for statement in FILL:
            ClientCursor(connection).execute(statement.encode(), {"million": MILLION})
        for table in ("orders", "payments", "outbox"):
            connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
        yield connection


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _explain(connection: Connection, query: Query, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run a statement like its service, with a generic plan, and roll it back."""
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        cursor = ClientCursor(connection)
        names = list(dict.fromkeys(_names(query)))
        cursor.execute(f"PREPARE q AS {query.numbered}".encode())
        values = ", ".join(f"%({name})s" for name in names)
        execute = f"EXECUTE q ({values})" if names else "EXECUTE q"
        try:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {execute}".encode(), parameters)
            found = cursor.fetchone()
        finally:
            connection.execute("DEALLOCATE q")
    assert found is not None
    plan: dict[str, Any] = found[0][0]["Plan"]
    return plan


def _names(query: Query) -> Iterator[str]:
    rest = query.text
    while "%(" in rest:
        name, _, rest = rest.partition("%(")[2].partition(")")
        yield name


def _rows_read(plan: dict[str, Any]) -> int:
    """Return the number of rows that the plan's scans of tables have read, including rows that they did not return."""
    return sum(
        round((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
        + node.get("Rows Removed by Index Recheck", 0)
        for node in _nodes(plan)
        if "Relation Name" in node and "Scan" in node["Node Type"]
    )


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.room}-{query.name}")
def test_a_periodic_query_reads_a_bounded_number_of_rows_through_an_index(full: Connection, query: Query) -> None:
    parameters, rows_max = PERIODIC[query.room, query.name]
    plan = _explain(full, query, parameters)
    assert _rows_read(plan) <= rows_max
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= 30 * rows_max + 200
    scans = {node.get("Relation Name") for node in _nodes(plan) if node["Node Type"] == "Seq Scan"}
    assert scans <= {"outbox_floor"}


def test_the_check_finds_the_query_of_the_previous_version_that_read_all_rows(full: Connection) -> None:
    query = Query("previous", "claim_overdue", load("tests.previous", "order_service.sql")["claim_overdue"])
    parameters = {"limit": 200, "deadline_seconds": 900.0, "nudges": 3}
    assert _rows_read(_explain(full, query, parameters)) >= MILLION


def test_every_periodic_query_exists() -> None:
    assert {(query.room, query.name) for query in QUERIES} == set(PERIODIC)
