"""A rolling upgrade: rows, events and statements of the previous version work with this schema and code."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from orderstream.cache import CacheInvalidator
from orderstream.domain.events import Event, Payload
from orderstream.domain.payment import Authorized, Voided
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.kafka.envelope import decode
from orderstream.order_service.handler import OrderHandler
from orderstream.postgres import migrate as migrate_module
from orderstream.postgres import sql as named
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.migrate import migrate, migrations
from orderstream.worker.handler import BatchResult
from tests.integration.decisions.orders import decide, place, record, result, row, types
from tests.support.databases import Databases
from tests.support.payments import Payments, ScriptedProvider, payments
from tests.support.queries import Query
from tests.support.samples import AT, ORDER_ID

PREVIOUS = Path(__file__).parents[2] / "previous"
SCHEMA = ("0001_order_path.sql", "0002_uncompensated_until_released.sql")
EVENTS: dict[str, Any] = json.loads((PREVIOUS / "events.json").read_text(encoding="utf-8"))
STATEMENTS = {path.stem: named.load("tests.previous", path.name) for path in sorted(PREVIOUS.glob("*.sql"))}
QUERIES = [Query(room, name, text) for room, blocks in STATEMENTS.items() for name, text in blocks.items()]


@pytest.fixture
def previous_url(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database with the schema of the previous version."""
    files = [file for file in migrations() if file[0] in SCHEMA]
    with databases.empty() as url:
        with monkeypatch.context() as patch:
            patch.setattr(migrate_module, "migrations", lambda: files)
            assert migrate(url) == list(SCHEMA)
        yield url


@pytest.fixture
def upgraded(previous_url: str) -> Iterator[Connection]:
    """A database of the previous version with an order in each state, after the migration."""
    with connect(previous_url, "previous") as connection:
        _write_as_before(connection)
        migrate(previous_url)
        yield connection


def _write_as_before(connection: Connection) -> None:
    """Accept the order of the golden events with the previous version's statement."""
    created = EVENTS["order.created"]
    payload = created["payload"]
    order = {
        "id": ORDER_ID,
        "user_id": payload["userId"],
        "amount": payload["amount"],
        "currency": payload["currency"],
        "items": payload["items"],
        "accepted_at": AT.isoformat(),
        "topic": "order.created.v1",
        "event_id": created["id"],
        "value": json.dumps(created),
        "idempotency_key": "a-key",
        "request_hash": None,
    }
    parameters = {"orders": json.dumps([order]), "channel": "orderstream_outbox"}
    connection.execute(STATEMENTS["api_gateway"]["accept_orders"].encode(), parameters)
    connection.execute("INSERT INTO inventory VALUES ('SKU-1', 10, 0), ('SKU-2', 10, 0)")
    assert row(connection, "SELECT count(*) FROM orders") == (1,)


def _event(name: str, **changes: Any) -> Event[Payload]:
    """Decode a golden event, with some fields of its payload changed."""
    body = EVENTS[name] | {"payload": EVENTS[name]["payload"] | changes}
    return decode(f"{name}.v1", ORDER_ID.encode(), json.dumps(body).encode())


@pytest.fixture
def payment() -> Iterator[Payments]:
    """A payment-worker that charges orders of any age."""
    with payments(ScriptedProvider(Authorized(), Voided()), key_lifetime_seconds=1e9) as built:
        yield built


def _handlers() -> tuple[InventoryHandler, OrderHandler]:
    cache = CacheInvalidator("redis://127.0.0.1:1/0", 0.01)
    return InventoryHandler(), OrderHandler(cache, ())


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.room}-{query.name}")
def test_every_statement_of_the_previous_version_fits_this_schema(connection: Connection, query: Query) -> None:
    statement = query.text if query.utility else f"PREPARE q AS {query.numbered}"
    connection.execute(statement.encode())


def test_the_previous_version_s_statements_change_an_order_as_before(upgraded: Connection) -> None:
    changed = [
        {"id": ORDER_ID, "status": "FAILED", "payment": "failed", "stock": "none", "version": 2,
         "payment_at": AT.isoformat(), "failure_reason": "PAYMENT_DECLINED"}
    ]  # fmt: skip
    upgraded.execute(STATEMENTS["payment_worker"]["insert_payments"].encode(), {"payments": json.dumps(
        [{"order_id": ORDER_ID, "state": "FAILED", "amount": 258.50, "reason": "PAYMENT_DECLINED", "attempts": 1}]
    )})  # fmt: skip
    upgraded.execute(STATEMENTS["inventory_worker"]["insert_reservations"].encode(), {"decisions": json.dumps(
        [{"order_id": ORDER_ID, "state": "RESERVED", "lines": {"SKU-1": 2}}]
    )})  # fmt: skip
    upgraded.execute(STATEMENTS["inventory_worker"]["move_stock"].encode(), {"skus": ["SKU-1"], "quantities": [2]})
    assert row(upgraded, "SELECT available, reserved FROM inventory WHERE sku = 'SKU-1'") == (8, 2)
    upgraded.execute(STATEMENTS["postgres_orders"]["update_orders"].encode(), {"orders": json.dumps(changed)})
    assert row(upgraded, "SELECT status, version FROM orders") == ("FAILED", 2)
    upgraded.execute("UPDATE orders SET status = 'PROCESSING', failure_reason = NULL, next_check_at = now()")
    upgraded.execute("DELETE FROM outbox")
    claimed = upgraded.execute(
        STATEMENTS["order_service"]["claim_stalled"].encode(),
        {"limit": 10, "longest_seconds": 300, "first_seconds": 30},
    ).fetchall()
    assert [order_id for order_id, *_ in claimed] == [ORDER_ID]


def test_events_of_the_previous_version_settle_an_order_of_the_previous_version(
    payment: Payments, upgraded: Connection
) -> None:
    inventory, order_service = _handlers()
    assert types(decide(payment.handler, upgraded, _event("order.created"))) == ["payment.authorized"]
    assert types(decide(inventory, upgraded, _event("payment.authorized"))) == ["inventory.reserved"]
    decide(order_service, upgraded, _event("inventory.reserved"), _event("payment.authorized"))
    assert row(upgraded, "SELECT status, payment, stock FROM orders") == ("CONFIRMED", "authorized", "reserved")
    upgraded.execute("UPDATE orders SET status = 'CANCELLED', aborted_at = now()")
    decide(payment.handler, upgraded, _event("order.aborted"))
    assert types(decide(inventory, upgraded, _event("order.aborted"))) == ["inventory.released"]
    payment.run_timers(upgraded)
    decide(order_service, upgraded, _event("payment.voided"), _event("inventory.released"))
    assert row(upgraded, "SELECT status, payment, stock FROM orders") == ("CANCELLED", "voided", "released")


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_of_the_previous_version_is_read(name: str) -> None:
    assert _event(name).id == EVENTS[name]["id"]


# Values that only a newer version knows

NEW = "WAREHOUSE_CLOSED"
NEW_VALUES = [
    ("order.aborted", {"status": "SHIPPED", "reason": NEW}),
    ("order.updated", {"status": "SHIPPED", "failureReason": NEW, "payment": {"state": "captured"}}),
    ("order.updated", {"stock": {"state": "picked", "decidedAt": None, "by": "robot"}, "more": [1]}),
    ("payment.failed", {"reason": NEW}),
    ("payment.voided", {"reason": NEW}),
    ("inventory.failed", {"reason": NEW}),
    ("inventory.released", {"reason": NEW}),
]


@pytest.mark.parametrize(("name", "changes"), NEW_VALUES)
def test_an_event_with_an_unknown_value_is_read(name: str, changes: dict[str, Any]) -> None:
    assert _event(name, **changes).type == name


@pytest.mark.parametrize("kind", ["payment.failed", "inventory.failed"])
def test_an_unknown_reason_is_passed_on(connection: Connection, kind: str) -> None:
    order_id = place(connection)
    event = result(kind, order_id, AT, NEW)  # type: ignore[arg-type]
    record(connection, event)
    inventory, order_service = _handlers()
    batch_result = decide(order_service, connection, event)
    told = {outgoing.event.type: outgoing.event.payload for outgoing in batch_result.emit}
    assert getattr(told["order.updated"], "failure_reason", None) == NEW
    assert row(connection, "SELECT status, failure_reason FROM orders") == ("FAILED", NEW)
    if kind == "inventory.failed":
        (abort,) = [outgoing.event for outgoing in batch_result.emit if outgoing.event.type == "order.aborted"]
        (released,) = decide(inventory, connection, abort).emit
        assert getattr(released.event.payload, "reason", None) == NEW


def _open(connection: Connection, table: str, column: str) -> None:
    """Remove the CHECK of a column's values, as the migration of a newer version does that adds a value."""
    found = connection.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'c'"
        " AND pg_get_constraintdef(oid) LIKE %s",
        (table, f"%{column}%"),
    ).fetchall()
    for (name,) in found:
        connection.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(*map(sql.Identifier, (table, name))))


@pytest.mark.parametrize(("column", "value"), [("payment", "captured"), ("stock", "picked"), ("status", "SHIPPED")])
def test_an_order_in_an_unknown_state_is_left_to_the_newer_version(
    connection: Connection, column: str, value: str
) -> None:
    order_id = place(connection)
    _open(connection, "orders", column)
    connection.execute("UPDATE orders SET status = 'PAID'")
    connection.execute(f"UPDATE orders SET {column} = %s".encode(), (value,))  # noqa: S608
    status = row(connection, "SELECT status FROM orders")
    events = [result("payment.authorized", order_id), result("inventory.reserved", order_id)]
    record(connection, *events)
    _, order_service = _handlers()
    batch_result = decide(order_service, connection, *events)
    assert batch_result.reject == []
    assert row(connection, f"SELECT {column} FROM orders") == (value,)  # noqa: S608
    assert row(connection, "SELECT status FROM orders") == status


def test_a_payment_or_reservation_in_an_unknown_state_is_left_to_the_newer_version(
    payment: Payments, connection: Connection
) -> None:
    order_id = place(connection)
    _open(connection, "payments", "state")
    _open(connection, "reservations", "state")
    connection.execute("INSERT INTO payments (order_id, state) VALUES (%s, 'CAPTURED')", (order_id,))
    connection.execute("INSERT INTO reservations (order_id, state) VALUES (%s, 'PICKED')", (order_id,))
    record(connection, result("inventory.reserved", order_id))
    answers = []
    handlers = (payment.handler, *_handlers())
    for handler, names in zip(
        handlers,
        (("order.created",), ("payment.authorized",), ("payment.authorized", "inventory.reserved")),
        strict=True,
    ):
        for name in names:
            event = result(name, order_id) if name != "order.created" else _created(order_id)
            answers.append(_only(decide(handler, connection, event)))
    connection.execute("UPDATE orders SET status = 'CANCELLED', aborted_at = now()")
    answers += [_only(decide(handler, connection, _aborted(order_id))) for handler in handlers[:2]]
    assert set(answers) <= {(), ("order.updated",)}
    assert row(connection, "SELECT state FROM payments") == ("CAPTURED",)
    assert row(connection, "SELECT state FROM reservations") == ("PICKED",)


def _only(batch_result: BatchResult) -> tuple[str, ...]:
    assert batch_result.reject == []
    return tuple(types(batch_result))


def _of(name: str, order_id: str) -> Event[Payload]:
    text = json.dumps(EVENTS[name]).replace(ORDER_ID, order_id)
    return decode(f"{name}.v1", order_id.encode(), text.encode())


def _created(order_id: str) -> Event[Payload]:
    return _of("order.created", order_id)


def _aborted(order_id: str) -> Event[Payload]:
    return _of("order.aborted", order_id)


# Migrations that build an index while orders are written

CONCURRENT = """-- no transaction
-- A comment; with a semicolon;
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS one_user ON orders (user_id);
CREATE INDEX CONCURRENTLY IF NOT EXISTS by_amount ON orders (amount);
"""


@pytest.fixture
def with_concurrent(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A migrated database, and one more migration, which builds two indexes."""
    later = [*migrations(), ("9998_indexes.sql", CONCURRENT)]
    monkeypatch.setattr(migrate_module, "migrations", lambda: later)
    return postgres_url


def _valid(connection: Connection) -> dict[str, bool]:
    query = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 'orders'::regclass"
    return dict(connection.execute(query.encode()).fetchall())


def test_an_index_whose_build_failed_is_built_again(with_concurrent: str, connection: Connection) -> None:
    place(connection)
    second = place(connection)
    with pytest.raises(psycopg.errors.UniqueViolation):
        migrate(with_concurrent)
    assert _valid(connection)["one_user"] is False
    connection.execute("UPDATE orders SET user_id = 'another' WHERE id = %s", (second,))
    assert migrate(with_concurrent) == ["9998_indexes.sql"]
    assert _valid(connection)["one_user"] is _valid(connection)["by_amount"] is True
    assert migrate(with_concurrent) == []


def test_an_index_is_built_while_another_migration_waits_and_orders_are_written(
    with_concurrent: str, connection: Connection
) -> None:
    """A migration that waits inside a statement would hold a snapshot, and the index build would wait for it."""
    place(connection)
    with ThreadPoolExecutor(3) as pool:
        applied = list(pool.map(migrate, [with_concurrent] * 3))
    assert sorted(applied, key=len) == [[], [], ["9998_indexes.sql"]]


def test_a_migration_outside_a_transaction_can_be_repeated() -> None:
    for name, text in migrations():
        if not text.startswith(migrate_module.NO_TRANSACTION):
            assert "CONCURRENTLY" not in text, name
            continue
        for statement in migrate_module.statements(text):
            assert "IF NOT EXISTS" in statement or "IF EXISTS" in statement, statement


def test_every_column_of_the_previous_version_exists_and_new_columns_are_optional(upgraded: Connection) -> None:
    """The previous version names its columns. A new column must have a default or allow NULL."""
    needed = upgraded.execute(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO'"
        " AND table_name IN ('orders', 'order_items', 'payments', 'reservations', 'outbox', 'inventory')"
    ).fetchall()
    assert set(needed) == {
        *(("orders", name) for name in ("id", "user_id", "amount", "currency")),
        *(("order_items", name) for name in ("order_id", "sku", "qty", "price")),
        *(("payments", name) for name in ("order_id", "state")),
        *(("reservations", name) for name in ("order_id", "state")),
        *(("outbox", name) for name in ("topic", "order_id", "event_id", "value")),
        ("inventory", "sku"),
    }
