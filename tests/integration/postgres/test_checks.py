"""The promises that are constraints: Postgres refuses a row that breaks one, from any writer (P3, P4, P10)."""

from collections.abc import Iterator
from itertools import product
from typing import get_args

import psycopg
import pytest

from orderstream.domain.limits import UNITS_MAX
from orderstream.domain.order import FailureReason, PaymentFact, Status, StockFact
from orderstream.domain.payment import PaymentState
from orderstream.postgres.connect import Connection, connect
from tests.support.databases import Databases


@pytest.fixture(scope="module")
def shared(databases: Databases) -> Iterator[Connection]:
    """One database for all tests of this module. No test commits."""
    with databases.migrated() as url, connect(url, "test") as opened:
        yield opened


@pytest.fixture
def connection(shared: Connection) -> Iterator[Connection]:
    """A transaction that is rolled back."""
    with shared.transaction(force_rollback=True):
        yield shared


def _order(connection: Connection, **columns: object) -> None:
    values = {"id": "o-1", "user_id": "u-1", "amount": 1, "currency": "USD"} | columns
    names = ", ".join(values)
    places = ", ".join(f"%({name})s" for name in values)
    connection.execute(f"INSERT INTO orders ({names}) VALUES ({places})".encode(), values)  # noqa: S608


@pytest.mark.parametrize(("payment", "stock"), [*product(get_args(PaymentFact), get_args(StockFact))])
def test_a_confirmed_order_needs_payment_and_stock(connection: Connection, payment: str, stock: str) -> None:
    facts = {"status": "CONFIRMED", "payment": payment, "stock": stock}
    if (payment, stock) == ("authorized", "reserved"):
        _order(connection, **facts)
        return
    with pytest.raises(psycopg.errors.CheckViolation, match="confirmed_is_authorized_and_reserved"):
        _order(connection, **facts)


@pytest.mark.parametrize("status", get_args(Status))
@pytest.mark.parametrize("reason", get_args(FailureReason))
def test_only_a_failed_order_has_a_failure_reason(
    connection: Connection, status: Status, reason: FailureReason
) -> None:
    columns = {"status": status, "failure_reason": reason, "payment": "authorized", "stock": "reserved"}
    if status == "FAILED":
        _order(connection, **columns)
        return
    with pytest.raises(psycopg.errors.CheckViolation, match="only_failed_has_a_reason"):
        _order(connection, **columns)


@pytest.mark.parametrize("status", get_args(Status))
def test_every_status_of_the_domain_is_accepted(connection: Connection, status: Status) -> None:
    _order(connection, status=status, payment="authorized", stock="reserved")


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "SHIPPED"},
        {"status": "confirmed"},
        {"payment": "refunded"},
        {"stock": "lost"},
        {"amount": 0},
        {"amount": -1},
    ],
    ids=str,
)
def test_unknown_values_and_amounts_that_are_not_positive_are_refused(
    connection: Connection, columns: dict[str, object]
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        _order(connection, **columns)


@pytest.mark.parametrize(("available", "reserved"), [(-1, 0), (0, -1)])
def test_stock_is_never_negative(connection: Connection, available: int, reserved: int) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="not_negative"):
        connection.execute("INSERT INTO inventory VALUES ('A', %s, %s)", (available, reserved))


@pytest.mark.parametrize(("available", "reserved"), [(UNITS_MAX, 0), (0, UNITS_MAX), (UNITS_MAX - 1, 1)])
def test_the_sum_of_available_and_reserved_units_is_bounded(
    connection: Connection, available: int, reserved: int
) -> None:
    connection.execute("INSERT INTO inventory VALUES ('A', %s, %s)", (available, reserved))
    for column in ("available", "reserved"):
        with pytest.raises(psycopg.errors.CheckViolation, match="inventory_units_bounded"), connection.transaction():
            connection.execute(f"UPDATE inventory SET {column} = {column} + 1".encode())  # noqa: S608


@pytest.mark.parametrize(("qty", "price"), [(0, 1), (-1, 1), (1, 0), (1, -1)])
def test_quantity_and_price_of_an_item_are_positive(connection: Connection, qty: int, price: int) -> None:
    _order(connection)
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("INSERT INTO order_items VALUES ('o-1', 'A', %s, %s)", (qty, price))


@pytest.mark.parametrize("state", get_args(PaymentState))
@pytest.mark.parametrize("scheduled", [True, False])
def test_a_payment_has_a_next_attempt_if_and_only_if_it_is_unfinished(
    connection: Connection, state: PaymentState, scheduled: bool
) -> None:
    _order(connection)
    insert = "INSERT INTO payments (order_id, state, next_attempt_at) VALUES ('o-1', %s, CASE WHEN %s THEN now() END)"
    if scheduled == (state in ("PENDING", "VOIDING")):
        connection.execute(insert, (state, scheduled))
        return
    with pytest.raises(psycopg.errors.CheckViolation, match="unfinished_is_scheduled"):
        connection.execute(insert, (state, scheduled))


@pytest.mark.parametrize("table", ["payments", "reservations"])
def test_unknown_states_of_payments_and_reservations_are_refused(connection: Connection, table: str) -> None:
    _order(connection)
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(f"INSERT INTO {table} (order_id, state) VALUES ('o-1', 'LOST')".encode())  # noqa: S608


@pytest.mark.parametrize("table", ["payments", "reservations"])
def test_a_payment_or_reservation_needs_an_existing_order(connection: Connection, table: str) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        connection.execute(f"INSERT INTO {table} (order_id, state) VALUES ('none', 'FAILED')".encode())  # noqa: S608


def test_an_idempotency_key_belongs_to_one_order(connection: Connection) -> None:
    _order(connection, id="a", idempotency_key="k")
    _order(connection, id="b")
    _order(connection, id="c")
    with pytest.raises(psycopg.errors.UniqueViolation):
        _order(connection, id="d", idempotency_key="k")
