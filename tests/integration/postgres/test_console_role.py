# ruff: noqa: S608 - the names of tables and columns come from the catalogue
"""The role of the console: it reads every table, and writes only what its actions need."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from orderstream.postgres.connect import connect
from orderstream.postgres.migrate import migrate
from tests.support.databases import Databases
from tests.support.queries import queries
from tests.support.servers import Servers

ROLE = (Path(__file__).parents[3] / "db" / "console_role.sql").read_bytes()

# What the role may write, with the action that needs it. Everything else is refused, in new tables too.
WRITES = {
    "UPDATE orders.next_check_at": "nudge",
    "UPDATE payments.next_attempt_at": "nudge",
    "INSERT inventory.sku": "stock set, stock add",
    "INSERT inventory.available": "stock set, stock add",
    "UPDATE inventory.available": "stock set, stock add",
    **dict.fromkeys(
        (
            f"INSERT operator_actions.{name}"
            for name in ("actor", "kind", "subject", "reason", "parameters", "is_exclusive", "lease_until")
        ),
        "the record of each action",
    ),
    **dict.fromkeys(
        (
            f"UPDATE operator_actions.{name}"
            for name in ("state", "result", "finished_at", "lease_until", "progress", "cancelled_by")
        ),
        "the record of each action",
    ),
}

# Tables of which the role inserts and updates every column, with the reason.
WRITES_WHOLE = {
    "dead_letters": "the index that the console fills from Kafka. It also deletes what Kafka no longer has",
    "dead_letter_positions": "how far the index is",
    "dead_letter_jobs": "redrives and discards",
    "dead_letter_actions": "what they did with each letter",
}
MAY_DELETE = {"dead_letters"}

COLUMNS = """
SELECT c.relname, a.attname
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY c.relname, a.attnum
"""


@pytest.fixture(scope="module")
def owner_url(databases: Databases) -> Iterator[str]:
    """A migrated database in which the role has its rights."""
    with databases.migrated() as url:
        with connect(url, "test") as owner:
            owner.execute(ROLE, prepare=False)
            owner.execute(ROLE, prepare=False)  # every start repeats it
        yield url


@pytest.fixture
def console(owner_url: str, servers: Servers) -> Iterator[psycopg.Connection]:
    """A connection of the role, opened as the console opens it."""
    with connect(servers.console_url(owner_url), "console") as opened:
        yield opened


def columns(connection: psycopg.Connection) -> list[tuple[str, str]]:
    """Return every table and column of the schema."""
    return [(table, column) for table, column in connection.execute(COLUMNS)]


def allowed(connection: psycopg.Connection, statement: str) -> bool:
    """Return whether the role may run a statement. Other errors mean that it may."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode(), prepare=False)
    except psycopg.errors.InsufficientPrivilege:
        return False
    except psycopg.Error:
        return True
    return True


def test_the_role_reads_every_table_and_column(console: psycopg.Connection) -> None:
    found = columns(console)
    assert len({table for table, _ in found}) > 8
    for table, column in found:
        console.execute(f'SELECT "{column}" FROM "{table}" LIMIT 1'.encode())


def test_the_role_writes_only_what_its_actions_need(console: psycopg.Connection) -> None:
    may = set()
    for table, column in columns(console):
        if table in WRITES_WHOLE:
            continue
        statements = {
            "INSERT": f'INSERT INTO "{table}" ("{column}") VALUES (DEFAULT)',
            "UPDATE": f'UPDATE "{table}" SET "{column}" = DEFAULT WHERE FALSE',
        }
        may |= {f"{verb} {table}.{column}" for verb, text in statements.items() if allowed(console, text)}
    assert may == set(WRITES)


# The statements that the console runs: those of its own packages, of the dead letters, of the audit and of the stock.
STOCK = ("create_sku", "lock_sku", "set_available")
RUN = [
    query
    for query in queries()
    if not query.utility
    and (
        query.room in ("console", "audit")
        or (query.room == "dead_letters" and "refused_records" not in query.text)
        or (query.room == "inventory_worker" and query.name in STOCK)
    )
]


def test_the_role_may_run_every_statement_of_the_console(console: psycopg.Connection) -> None:
    """EXPLAIN checks the rights as an execution does, and changes nothing."""
    assert len({query.room for query in RUN}) == 4
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        console.execute("EXPLAIN DELETE FROM orders")
    refused = []
    for query in RUN:
        try:
            psycopg.ClientCursor(console).execute(f"EXPLAIN (GENERIC_PLAN) {query.numbered}".encode())
        except psycopg.errors.InsufficientPrivilege as error:
            refused.append(f"{query.room} {query.name}: {error}")
    assert refused == []


def test_the_role_neither_deletes_nor_changes_the_schema(console: psycopg.Connection) -> None:
    for table in {table for table, _ in columns(console)}:
        assert allowed(console, f'DELETE FROM "{table}" WHERE FALSE') == (table in MAY_DELETE), table
        for statement in (
            f'TRUNCATE "{table}"',
            f'DROP TABLE "{table}"',
            f'ALTER TABLE "{table}" ADD COLUMN x INT',
            f'CREATE RULE r AS ON UPDATE TO "{table}" DO INSTEAD NOTHING',
            f'COMMENT ON TABLE "{table}" IS NULL',
        ):
            assert not allowed(console, statement), statement
    for statement in (
        "CREATE TABLE x (y INT)",
        "CREATE SCHEMA x",
        "CREATE ROLE x",
        "ALTER ROLE console SUPERUSER",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
    ):
        assert not allowed(console, statement), statement


def test_a_table_of_a_later_version_can_be_read_and_not_written(owner_url: str, servers: Servers) -> None:
    with connect(owner_url, "test") as owner, connect(servers.console_url(owner_url), "console") as console:
        owner.execute("CREATE TABLE later (x INT DEFAULT 1)")
        try:
            assert console.execute("SELECT count(*) FROM later").fetchone() == (0,)
            assert not allowed(console, "INSERT INTO later DEFAULT VALUES")
        finally:
            owner.execute("DROP TABLE later")


def test_a_right_of_an_earlier_version_is_taken_back(owner_url: str, servers: Servers) -> None:
    with connect(owner_url, "test") as owner, connect(servers.console_url(owner_url), "console") as console:
        owner.execute("GRANT DELETE ON orders TO console")
        owner.execute("GRANT UPDATE (status) ON orders TO console")
        assert allowed(console, "DELETE FROM orders")
        owner.execute(ROLE, prepare=False)
        assert not allowed(console, "DELETE FROM orders")
        assert not allowed(console, "UPDATE orders SET status = DEFAULT")


def test_the_migrations_grant_nothing_by_themselves(databases: Databases, servers: Servers) -> None:
    with databases.empty() as url:
        migrate(url)
        with connect(servers.console_url(url), "console") as console:
            assert not allowed(console, "SELECT FROM orders")
