"""A migration brings every supported database to the schema of this version once, or refuses to change it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from orderstream.cli import main
from orderstream.postgres import migrate as migrate_module
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.migrate import LOCK_KEY, MigrationError, migrate, migrations
from tests.support.databases import Databases
from tests.support.waiting import wait_until

NAMES = [name for name, _ in migrations()]
DB = Path(__file__).parents[3] / "db"

# A script that users may have run before the first migration.
EARLY_SCRIPT = """
CREATE TABLE IF NOT EXISTS inventory (
  sku TEXT PRIMARY KEY,
  available INT NOT NULL DEFAULT 0,
  reserved  INT NOT NULL DEFAULT 0
);
INSERT INTO inventory (sku, available, reserved)
VALUES ('SKU-1', 100, 0)
ON CONFLICT (sku) DO UPDATE SET available = EXCLUDED.available;
"""
EARLY_COLUMNS = {
    "orders": "id user_id amount currency status failure_reason created_at updated_at",
    "order_items": "order_id sku qty price",
    "inventory": "sku available reserved",
}


@pytest.fixture
def empty_url(databases: Databases) -> Iterator[str]:
    """A database without tables."""
    with databases.empty() as url:
        yield url


def _rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def _run(url: str, script: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(script.encode())


def _tables(url: str) -> list[str]:
    found = _rows(url, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1")
    return [str(name) for (name,) in found]


def test_a_new_database_gets_the_whole_schema(empty_url: str) -> None:
    assert migrate(empty_url) == NAMES
    wanted = {"inventory", "order_items", "orders", "outbox", "payments", "reservations", "schema_migrations"}
    assert wanted <= set(_tables(empty_url))


def test_a_second_migration_changes_nothing(empty_url: str) -> None:
    migrate(empty_url)
    _run(empty_url, "INSERT INTO inventory VALUES ('A', 1, 2)")
    assert migrate(empty_url) == []
    assert _rows(empty_url, "SELECT * FROM inventory") == [("A", 1, 2)]


def test_concurrent_migrations_wait_for_each_other(empty_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        applied = list(pool.map(migrate, [empty_url] * 6))
    assert sorted(applied, key=len) == [[], [], [], [], [], NAMES]


@pytest.fixture
def half_migrated_url(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database without the last migration, which changes `orders`. The time limit for a lock is short."""
    migrate(empty_url)
    later = [*migrations(), ("9998_later.sql", "CREATE TABLE more (); ALTER TABLE orders ADD COLUMN more TEXT;")]
    monkeypatch.setattr(migrate_module, "migrations", lambda: later)
    monkeypatch.setattr(migrate_module, "LOCK_TIMEOUT_SECONDS", 0.3)
    return empty_url


def test_a_migration_waits_only_shortly_for_a_locked_table(half_migrated_url: str) -> None:
    with psycopg.connect(half_migrated_url) as busy:
        busy.execute("INSERT INTO orders (id, user_id, amount, currency, status) VALUES ('1', '1', 1, 'USD', 'PAID')")
        run = CliRunner().invoke(main, ["migrate"], env={"POSTGRES_URL": half_migrated_url})
        assert run.exit_code == 1
        assert run.stderr.startswith("Error: 9998_later.sql waited 0.3 s for a table that is in use")
        assert run.stderr.endswith("try again\n")
        assert "more" not in _tables(half_migrated_url)
    assert migrate(half_migrated_url) == ["9998_later.sql"]


def test_limits_of_the_connection_string_do_not_end_a_migration(
    half_migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = [*migrations(), ("9998_slow.sql", "SELECT pg_sleep(0.3)")]
    monkeypatch.setattr(migrate_module, "migrations", lambda: slow)
    assert migrate(f"{half_migrated_url}?options=-c%20statement_timeout%3D100") == ["9998_slow.sql"]


def test_a_migration_waits_longer_for_another_migration_than_for_a_table(half_migrated_url: str) -> None:
    with ThreadPoolExecutor(1) as pool, psycopg.connect(half_migrated_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        waiting = pool.submit(migrate, f"{half_migrated_url}?options=-c%20lock_timeout%3D100")
        wait_until(lambda: _waits_since(half_migrated_url) > 1, 20, "the migration waits")
        other.rollback()
        assert waiting.result(20) == ["9998_later.sql"]


def _waits_since(url: str) -> float:
    """Return the seconds for which a migration has waited for another migration."""
    ((seconds,),) = _rows(
        url,
        """
        SELECT COALESCE(max(EXTRACT(EPOCH FROM clock_timestamp() - backend_start)), 0)::float
        FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'migrate'
        """,
    )
    assert isinstance(seconds, float)
    return seconds


def test_a_migration_file_that_was_changed_is_refused(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(empty_url)
    changed = [(name, text + "\n-- another word") for name, text in migrations()]
    monkeypatch.setattr(migrate_module, "migrations", lambda: changed)
    with pytest.raises(MigrationError, match=f"changed after.*{NAMES[0]}"):
        migrate(empty_url)


def test_a_database_of_a_newer_version_is_refused(empty_url: str) -> None:
    migrate(empty_url)
    _run(empty_url, "INSERT INTO schema_migrations (name, sha256) VALUES ('9999_from_the_future.sql', 'x')")
    with pytest.raises(MigrationError, match=r"newer version.*9999_from_the_future\.sql"):
        migrate(empty_url)


def test_a_failed_migration_changes_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [*migrations()[:2], ("9998_broken.sql", "CREATE TABLE half (); SELECT 1 / 0;")]
    monkeypatch.setattr(migrate_module, "migrations", lambda: broken)
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty_url)
    assert _tables(empty_url) == []


@pytest.mark.parametrize("script", [EARLY_SCRIPT, (DB / "init_inventory.sql").read_text()], ids=["early script", "db"])
def test_the_inventory_scripts_work_before_and_after_the_migration(empty_url: str, script: str) -> None:
    _run(empty_url, script)
    _run(empty_url, "INSERT INTO inventory VALUES ('SKU-9', 5, 0)")
    assert migrate(empty_url) == NAMES
    assert _rows(empty_url, "SELECT * FROM inventory ORDER BY sku") == [("SKU-1", 100, 0), ("SKU-9", 5, 0)]
    _run(empty_url, "UPDATE inventory SET available = 58, reserved = 42 WHERE sku = 'SKU-1'")
    _run(empty_url, script)
    assert _rows(empty_url, "SELECT * FROM inventory WHERE sku = 'SKU-1'") == [("SKU-1", 100, 42)]


def test_an_existing_inventory_table_gets_the_checks(empty_url: str) -> None:
    _run(empty_url, EARLY_SCRIPT)
    migrate(empty_url)
    with pytest.raises(psycopg.errors.CheckViolation):
        _run(empty_url, "UPDATE inventory SET available = -1")


# The statements `stock_of` and `move_stock` of the previous inventory-worker.
STOCK_OF = "SELECT sku, available FROM inventory WHERE sku = ANY(%(skus)b::text[]) ORDER BY sku FOR NO KEY UPDATE"
MOVE_STOCK = """
UPDATE inventory i
SET available = i.available - m.quantity, reserved = i.reserved + m.quantity
FROM unnest(%(skus)s::text[], %(quantities)s::int[]) AS m (sku, quantity)
WHERE i.sku = m.sku
"""


@pytest.fixture
def before_0003_url(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of the previous version, with stock at the limit of INT."""
    with monkeypatch.context() as patch:
        patch.setattr(migrate_module, "migrations", lambda: migrations()[:2])
        migrate(empty_url)
    _run(empty_url, "INSERT INTO inventory VALUES ('A', 2147483647, 1), ('B', 5, 0)")
    return empty_url


def _move(connection: Connection, units: int) -> list[tuple[object, ...]]:
    """Reserve units of B like the previous version."""
    with connection.transaction():
        found = connection.execute(STOCK_OF, {"skus": ["B"]}).fetchall()
        connection.execute(MOVE_STOCK, {"skus": ["B"], "quantities": [units]})
    return found


def test_an_inventory_worker_of_the_previous_version_continues(before_0003_url: str) -> None:
    with connect(before_0003_url, "inventory-worker") as worker, connect(before_0003_url, "other") as other:
        assert _move(worker, 1) == [("B", 5)]
        assert other.execute("SELECT 1", prepare=True).fetchone() == (1,)
        assert migrate(before_0003_url)[0].startswith("0003_")
        # The worker treats this error as an error of the connection, and retries its batch on a new connection.
        with pytest.raises(psycopg.OperationalError) as caught:
            _move(worker, 1)
        assert caught.value.sqlstate in (None, "57P01")
        assert worker.closed
        assert other.execute("SELECT 1", prepare=True).fetchone() == (1,)
        with connect(before_0003_url, "inventory-worker") as again:
            assert _move(again, 1) == [("B", 4)]
    assert _rows(before_0003_url, "SELECT * FROM inventory ORDER BY 1") == [("A", 2**31 - 1, 1), ("B", 3, 2)]


def test_a_worker_that_waits_for_the_migration_uses_the_new_column_type(
    before_0003_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker connects after the others were ended and before the commit. It must not prepare for the old type."""
    name, text = migrations()[2]
    slow = [*migrations()[:2], (name, text + "SELECT pg_advisory_xact_lock(1);")]
    monkeypatch.setattr(migrate_module, "migrations", lambda: slow)
    with ThreadPoolExecutor(2) as pool, psycopg.connect(before_0003_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(1)")
        migrating = pool.submit(migrate, before_0003_url)
        holds = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND application_name = 'migrate'"
        wait_until(lambda: _rows(before_0003_url, holds) == [(1,)], 20, "the migration has its locks")
        with connect(before_0003_url, "inventory-worker") as worker:
            moving = pool.submit(_move, worker, 1)
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'relation' AND datname = current_database()"
            )
            wait_until(lambda: _rows(before_0003_url, waits) == [(1,)], 20, "the worker waits for the table")
            other.rollback()
            assert migrating.result(20) == [name]
            assert moving.result(20) == [("B", 5)]
            assert _move(worker, 1) == [("B", 4)]


@pytest.mark.parametrize("table", EARLY_COLUMNS)
def test_the_columns_of_the_first_version_exist(postgres_url: str, table: str) -> None:
    found = _rows(postgres_url, f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}'")  # noqa: S608
    assert set(EARLY_COLUMNS[table].split()) <= {str(name) for (name,) in found}


def test_the_statements_of_the_first_version_work(postgres_url: str) -> None:
    _run(
        postgres_url,
        """
        INSERT INTO orders (id, user_id, amount, currency, status) VALUES ('o-1', 'u-1', 129.0, 'USD', 'PROCESSING');
        INSERT INTO order_items (order_id, sku, qty, price) VALUES ('o-1', 'SKU-1', 1, 129.0);
        UPDATE orders SET status = 'FAILED', failure_reason = 'OUT_OF_STOCK', updated_at = now() WHERE id = 'o-1';
        """,
    )
    assert _rows(postgres_url, "SELECT status, failure_reason FROM orders") == [("FAILED", "OUT_OF_STOCK")]
    _run(postgres_url, "DELETE FROM orders")
    assert _rows(postgres_url, "SELECT count(*) FROM order_items") == [(0,)]
