"""The faults of a real server's errors. Only an error about data may be charged to a record or an order."""

import psycopg
import pytest
from msgspec import Struct

from orderstream.postgres.connect import Connection
from orderstream.postgres.faults import Fault, StaleSessionError, fault_of, is_transient, names_unknown_order

_LARGE_KEY = "INSERT INTO inventory SELECT string_agg(md5(i::text), ''), 1, 0 FROM generate_series(1, 500) AS i"
_CHANGED_PLAN = """
CREATE TEMP TABLE t (a int); PREPARE p AS SELECT * FROM t; EXECUTE p; ALTER TABLE t ALTER a TYPE bigint; EXECUTE p
"""
CASES = {
    Fault.VALUE: [
        "SELECT 'x'::uuid",
        "SELECT '99999999999'::int",
        "SELECT '99999999999999999999'::bigint",
        "SELECT '1e999'::float8",
        "SELECT 1e30::numeric(12, 2)",
        "SELECT '2026-13-45'::date",
        "SELECT 'no time'::timestamptz",
        "SELECT 'no json'::json",
        r"""SELECT * FROM json_to_record('{"a": "\u0000"}') AS t (a text)""",
        """SELECT * FROM json_to_record('{"a": 99999999999}') AS t (a int)""",
        _LARGE_KEY,
        "CREATE TEMP TABLE short (a varchar(1)); INSERT INTO short VALUES ('abc')",
    ],
    Fault.ROW: [
        "SELECT 9223372036854775807 + available FROM (VALUES (1::bigint)) AS t (available)",
        "SELECT 2147483647 + available FROM (VALUES (1)) AS t (available)",
        "SELECT 1 / available FROM (VALUES (0)) AS t (available)",
        "INSERT INTO inventory VALUES ('A', -1, 0)",
        "INSERT INTO inventory VALUES (NULL, 1, 0)",
        "INSERT INTO inventory VALUES ('A', 1, 0), ('A', 1, 0)",
        "INSERT INTO reservations (order_id, state) VALUES ('nowhere', 'FAILED')",
    ],
    Fault.SESSION: [
        "SET TRANSACTION READ ONLY; DELETE FROM orders",
        "EXECUTE not_prepared",
        "PREPARE taken AS SELECT 1; PREPARE taken AS SELECT 1",
        "SET statement_timeout = '1ms'; SELECT pg_sleep(1)",
        _CHANGED_PLAN,
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "CLOSE not_open",
        "DO $$ BEGIN RAISE EXCEPTION SQLSTATE '08P01'; END $$",
    ],
    Fault.UNKNOWN: [
        "DO $$ BEGIN RAISE EXCEPTION 'of a trigger that is not ours'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION SQLSTATE 'XX000'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION SQLSTATE 'ZZ123'; END $$",
        "SELECT set_config('DateStyle', 'nonsense', FALSE)",
        r"SELECT convert_from('\xff', 'UTF8')",
        "SELECT convert('é'::bytea, 'UTF8', 'LATIN2'), convert_to('日', 'LATIN1')",
        "DO $$ BEGIN RAISE EXCEPTION SQLSTATE '0A000'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION SQLSTATE '54001'; END $$",
    ],
    Fault.FATAL: [
        "SELECT * FROM nowhere",
        "SELECT nothing FROM orders",
        "CREATE TABLE no_schema.t ()",
        "SET ROLE pg_read_all_data; DELETE FROM orders",
    ],
}


def _error_of(connection: Connection, statement: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as refused:
        connection.execute(statement.encode(), prepare=False)
    return refused.value


@pytest.mark.parametrize(
    ("fault", "statement"), [(fault, statement) for fault, statements in CASES.items() for statement in statements]
)
def test_an_error_of_postgres_has_the_expected_fault(connection: Connection, fault: Fault, statement: str) -> None:
    error = _error_of(connection, statement)
    assert fault_of(error) is fault, (error.sqlstate, error.diag.source_function)


def test_a_value_that_psycopg_cannot_send_is_a_value_fault(connection: Connection) -> None:
    with pytest.raises(psycopg.DataError) as refused:
        connection.execute("SELECT %s::text", ("NUL \x00",))
    assert fault_of(refused.value) is Fault.VALUE


class _NotAdaptable(Struct):
    pass


def test_a_statement_that_psycopg_cannot_build_is_not_a_value_fault(connection: Connection) -> None:
    with pytest.raises(psycopg.ProgrammingError) as refused:
        connection.execute("SELECT %s", (_NotAdaptable(),))
    assert fault_of(refused.value) is Fault.UNKNOWN


def test_a_closed_connection_is_a_session_fault(connection: Connection) -> None:
    connection.close()
    with pytest.raises(psycopg.OperationalError) as refused:
        connection.execute("SELECT 1")
    assert fault_of(refused.value) is Fault.SESSION


def test_the_fault_does_not_depend_on_the_language_of_the_messages(connection: Connection) -> None:
    """The message of an error with a SQLSTATE is not parsed."""
    error = _error_of(connection, "DO $$ BEGIN RAISE 'value is out of range' USING ERRCODE = '22003'; END $$")
    assert fault_of(error) is Fault.ROW


def test_an_exception_of_another_library_has_no_fault() -> None:
    assert fault_of(ValueError("a defect")) is None
    assert not is_transient(ValueError("a defect"))
    assert is_transient(StaleSessionError("relation does not exist"))


def test_only_a_row_without_its_order_is_an_unknown_order(connection: Connection) -> None:
    assert names_unknown_order(_error_of(connection, CASES[Fault.ROW][-1]))
    connection.execute("CREATE TABLE others (id TEXT PRIMARY KEY REFERENCES inventory (sku))")
    assert not names_unknown_order(_error_of(connection, "INSERT INTO others VALUES ('nowhere')"))
    connection.execute("INSERT INTO inventory VALUES ('A', 1, 0)")
    connection.execute("INSERT INTO others VALUES ('A')")
    assert not names_unknown_order(_error_of(connection, "DELETE FROM inventory"))
