"""Every statement that locks several rows locks them in the order of their keys, under every plan.

Two statements with different orders can deadlock. Postgres ends one of them, and the service repeats it. No
other test would fail.
"""

import json
from typing import Any

import psycopg
import pytest
from msgspec import Struct

from orderstream.domain.stock import Reservation
from orderstream.inventory_worker.handler import SQL as INVENTORY_WORKER
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.outbox_relay.retention import SQL as OUTBOX_RELAY
from orderstream.payment_worker.handler import SQL as PAYMENT_WORKER
from orderstream.payment_worker.handler import PaymentHandler
from orderstream.payment_worker.handler import _NewPayment as NewPayment
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.orders import SQL as ORDERS
from tests.integration.decisions.orders import place
from tests.support.locks import after_it_waits

FIRST, HELD, LAST = "a", "b", "c"
UNSORTED = [LAST, HELD, FIRST]
PLANS = {"as planned": "jit", "no index scan": "enable_indexscan", "no nested loop": "enable_nestloop"}
"""Settings that the test switches off. On a table of another size, Postgres may choose one of the remaining plans."""


class Locking(Struct, frozen=True):
    """A statement, its parameters, and the table and column whose rows it locks. `order` is that of the parameters."""

    statement: str
    parameters: dict[str, Any]
    table: str
    column: str


def _array(statement: str, table: str, column: str, name: str) -> Locking:
    return Locking(statement, {name: UNSORTED}, table, column)


ATTEMPTS = [{"order_id": order_id, "began": "PENDING", "state": "FAILED", "attempts": 1} for order_id in UNSORTED]
VOIDS = {"ids": UNSORTED, "reasons": [None] * 3, "traceparents": [None] * 3, "tracestates": [None] * 3}
LOCKING = {
    "stock_of": _array(INVENTORY_WORKER["stock_of"], "inventory", "sku", "skus"),
    "reservations_and_payments": _array(
        INVENTORY_WORKER["reservations_and_payments"], "reservations", "order_id", "ids"
    ),
    "lock_orders": _array(ORDERS["lock_orders"], "orders", "id", "ids"),
    "units_of": _array(OUTBOX_RELAY["units_of"], "reservations", "order_id", "ids"),
    "lock_skus": _array(OUTBOX_RELAY["lock_skus"], "inventory", "sku", "skus"),
    "begin_voids": Locking(PAYMENT_WORKER["begin_voids"], VOIDS | {"from_states": ["PENDING"]}, "payments", "order_id"),
    "bring_forward": Locking(
        PAYMENT_WORKER["bring_forward"].replace("pending_since IS NOT NULL AND next_attempt_at > now()", "TRUE"),
        {"ids": UNSORTED},
        "payments",
        "order_id",
    ),
    "finish_attempts": Locking(
        PAYMENT_WORKER["finish_attempts"], {"attempts": json.dumps(ATTEMPTS)}, "payments", "order_id"
    ),
    "void_late_authorizations": Locking(
        PAYMENT_WORKER["void_late_authorizations"].replace("'VOIDED', 'FAILED'", "'PENDING'"),
        {"ids": UNSORTED},
        "payments",
        "order_id",
    ),
}


@pytest.fixture
def rows(connection: Connection) -> Connection:
    """Three rows in each table, stored in the reverse order of their keys."""
    for key in UNSORTED:
        place(connection, {key: 1}, key)
        connection.execute("INSERT INTO inventory VALUES (%s, 1, 1)", (key,))
        connection.execute("INSERT INTO reservations (order_id, state, lines) VALUES (%s, 'RESERVED', '{}')", (key,))
        connection.execute(
            "INSERT INTO payments (order_id, state, next_attempt_at) VALUES (%s, 'PENDING', now())", (key,)
        )
    return connection


def _is_taken(observer: Connection, locking: Locking, key: str) -> bool:
    query = f"SELECT FROM {locking.table} WHERE {locking.column} = %s FOR UPDATE NOWAIT"
    try:
        with observer.transaction():
            observer.execute(query.encode(), (key,))
    except psycopg.errors.LockNotAvailable:
        return True
    return False


def _insert_payments(tx: Connection) -> None:
    PaymentHandler._insert(tx, [NewPayment(key, "AUTHORIZED") for key in UNSORTED])


def _insert_reservations(tx: Connection) -> None:
    InventoryHandler._record(tx, {}, {key: Reservation("RELEASED", {}) for key in UNSORTED}, {})


INSERTS = {
    "payments": ("INSERT INTO payments (order_id, state) VALUES (%s, 'FAILED')", _insert_payments),
    "reservations": ("INSERT INTO reservations (order_id, state) VALUES (%s, 'FAILED')", _insert_reservations),
}


def _is_inserted(observer: Connection, insert: str, key: str) -> bool:
    """Say whether another transaction has inserted a key, by whether a second insert waits."""
    try:
        with observer.transaction(force_rollback=True):
            observer.execute("SET LOCAL lock_timeout = '50ms'")
            observer.execute(insert.encode(), (key,))
    except psycopg.errors.LockNotAvailable:
        return True
    return False


@pytest.mark.parametrize("table", INSERTS)
def test_rows_are_inserted_in_the_order_of_their_keys(connection: Connection, postgres_url: str, table: str) -> None:
    """An insert waits for a key that another transaction has inserted."""
    insert, work = INSERTS[table]
    taken: list[str] = []
    for key in UNSORTED:
        place(connection, {key: 1}, key)
    with (
        connect(postgres_url, "waiter") as waiter,
        connect(postgres_url, "observer") as observer,
        psycopg.connect(postgres_url) as holder,
    ):
        waiter.execute("SET lock_timeout = '30s'")
        waiter.execute("SET statement_timeout = '30s'")
        holder.execute(insert.encode(), (HELD,))

        def look_and_release() -> None:
            taken.extend(key for key in (FIRST, LAST) if _is_inserted(observer, insert, key))
            holder.rollback()

        def insert_all() -> None:
            with waiter.transaction():
                work(waiter)

        after_it_waits(observer, insert_all, look_and_release)
    assert taken == [FIRST]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", LOCKING)
def test_rows_are_locked_in_the_order_of_their_keys(rows: Connection, postgres_url: str, name: str, plan: str) -> None:
    locking = LOCKING[name]
    taken: list[str] = []
    with (
        connect(postgres_url, "waiter") as waiter,
        connect(postgres_url, "observer") as observer,
        psycopg.connect(postgres_url) as holder,
    ):
        waiter.execute("SET lock_timeout = '30s'")
        waiter.execute("SET statement_timeout = '30s'")
        waiter.execute(f"SET {PLANS[plan]} = off".encode())
        holder.execute(f"SELECT FROM {locking.table} WHERE {locking.column} = %s FOR UPDATE".encode(), (HELD,))

        def look_and_release() -> None:
            taken.extend(key for key in (FIRST, LAST) if _is_taken(observer, locking, key))
            holder.rollback()

        def work() -> None:
            with waiter.transaction():
                waiter.execute(locking.statement.encode(), locking.parameters)

        after_it_waits(observer, work, look_and_release)
    assert taken == [FIRST]
