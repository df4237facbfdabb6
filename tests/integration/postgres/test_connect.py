"""Every connection has time limits, and its errors are transient or fatal."""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from orderstream.postgres.connect import Connection, connect, connect_async
from orderstream.postgres.faults import is_fatal, is_transient
from tests.support.databases import Databases

LIMITS = {
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "45s",
    "TimeZone": "UTC",
    "enable_seqscan": "off",
    "jit": "off",
}


@pytest.mark.parametrize(("name", "value"), LIMITS.items())
def test_the_time_limits_are_set_on_blocking_connections(connection: Connection, name: str, value: str) -> None:
    assert connection.execute(f"SHOW {name}".encode()).fetchone() == (value,)
    assert connection.autocommit


async def _limits(url: str) -> dict[str, str]:
    async with await connect_async(url, "a-service") as connection:
        cursor = await connection.execute(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s) OR name = 'application_name'",
            (list(LIMITS),),
        )
        return dict(await cursor.fetchall())


def test_the_time_limits_are_set_on_asyncio_connections(postgres_url: str) -> None:
    assert asyncio.run(_limits(postgres_url)) == LIMITS | {"application_name": "a-service"}


def test_a_refused_connection_is_transient() -> None:
    with pytest.raises(psycopg.OperationalError) as refused:
        connect("postgresql://app@127.0.0.1:1/orders", "test")
    assert is_transient(refused.value)
    assert not is_fatal(refused.value)


def test_connecting_to_a_silent_server_ends_in_time_and_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orderstream.postgres.connect.CONNECT_TIMEOUT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(psycopg.OperationalError) as waited:
        connect(f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/orders", "test")
    assert is_transient(waited.value)


@pytest.mark.parametrize(
    ("statements", "transient", "fatal"),
    [
        (["SET LOCAL statement_timeout = '1ms'", "SELECT pg_sleep(1)"], True, False),
        (["SET LOCAL lock_timeout = '1ms'", "LOCK orders"], True, False),
        (["SELECT pg_terminate_backend(pg_backend_pid())"], True, False),
        (["SET TRANSACTION READ ONLY", "DELETE FROM orders"], True, False),
        (["SELECT 1 / 0"], False, False),
        (["INSERT INTO inventory VALUES ('A', -1, 0)"], False, False),
        (["SELECT nothing FROM orders"], False, True),
        (["SELECT * FROM nowhere"], False, True),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_an_error_is_transient_or_fatal_by_its_sqlstate(
    postgres_url: str, statements: list[str], transient: bool, fatal: bool
) -> None:
    with connect(postgres_url, "holder") as holder, holder.transaction():
        holder.execute("LOCK orders IN ACCESS SHARE MODE")
        error = _error_of(lambda: _execute(postgres_url, statements))
    assert error is not None
    assert (is_transient(error), is_fatal(error)) == (transient, fatal)


def test_a_deadlock_is_transient_and_counted(databases: Databases) -> None:
    with databases.migrated() as url:
        assert [is_transient(error) for error in _deadlock(url)] == [True]
        assert databases.deadlocks(url) == 1


def _deadlock(url: str) -> list[psycopg.Error]:
    with connect(url, "first") as first, connect(url, "second") as second, ThreadPoolExecutor(1) as pool:
        first.execute("BEGIN")
        second.execute("BEGIN")
        first.execute("LOCK orders")
        second.execute("LOCK inventory")
        waiting = pool.submit(first.execute, "LOCK inventory")
        errors = [_error_of(lambda: second.execute("LOCK orders"))]
        second.execute("ROLLBACK")
        errors.append(_error_of(waiting.result))
    return [error for error in errors if error]


def _execute(postgres_url: str, statements: list[str]) -> None:
    with connect(postgres_url, "test") as connection:
        connection.execute("BEGIN")
        for statement in statements:
            connection.execute(statement.encode())


def _error_of(work: Callable[[], object]) -> psycopg.Error | None:
    try:
        work()
    except psycopg.Error as error:
        return error
    return None


@pytest.mark.parametrize(
    ("user", "database"), [("app", "not_there"), ("nobody_known", "postgres"), ("locked_out", "postgres")]
)
def test_a_permanently_refused_connection_is_fatal(postgres_url: str, user: str, database: str) -> None:
    with connect(postgres_url, "test") as connection:
        connection.execute("DROP ROLE IF EXISTS locked_out")
        connection.execute("CREATE ROLE locked_out NOLOGIN")
    url = make_conninfo(postgres_url, user=user, dbname=database)
    with pytest.raises(psycopg.OperationalError) as refused:
        connect(url, "test")
    assert is_fatal(refused.value)
    assert not is_transient(refused.value)


@pytest.mark.parametrize(
    "words", ['password authentication failed for user "app"', 'no pg_hba.conf entry for host "10.0.0.1", user "app"']
)
def test_a_wrong_password_is_fatal(words: str) -> None:
    assert is_fatal(psycopg.OperationalError(f"connection failed: FATAL:  {words}"))


@pytest.mark.parametrize("words", ["the database system is starting up", "sorry, too many clients already"])
def test_a_connection_refused_by_a_busy_server_is_transient(words: str) -> None:
    error = psycopg.OperationalError(f"connection failed: FATAL:  {words}")
    assert is_transient(error)
    assert not is_fatal(error)


def test_options_of_the_connection_string_are_kept_beside_our_settings(postgres_url: str) -> None:
    with connect(f"{postgres_url}?options=-cwork_mem%3D5MB%20-cenable_seqscan%3Don", "test") as opened:
        assert opened.execute("SHOW work_mem").fetchone() == ("5MB",)
        assert opened.execute("SHOW enable_seqscan").fetchone() == ("off",)


GIVEN = {
    "application_name": "shop",
    "connect_timeout": "7",
    "keepalives": "0",
    "keepalives_idle": "60",
    "keepalives_interval": "20",
    "keepalives_count": "9",
    "tcp_user_timeout": "5000",
    "sslmode": "disable",
}


def test_the_connection_string_overrides_our_defaults_for_the_transport(postgres_url: str) -> None:
    with connect(make_conninfo(postgres_url, **GIVEN), "a-service") as opened:
        in_use = {option.keyword.decode(): option.val for option in opened.pgconn.info}
        assert {name: (in_use[name] or b"").decode() for name in GIVEN} == GIVEN
        assert opened.execute("SHOW application_name").fetchone() == ("shop",)


def test_a_connection_has_the_name_of_its_service_and_our_transport_limits_by_default(postgres_url: str) -> None:
    with connect(postgres_url, "a-service") as opened:
        in_use = {option.keyword.decode(): option.val for option in opened.pgconn.info}
        assert (in_use["connect_timeout"], in_use["keepalives_idle"]) == (b"3", b"5")
        assert opened.execute("SHOW application_name").fetchone() == ("a-service",)


def test_the_connection_string_cannot_change_the_encoding_or_the_need_for_writes(postgres_url: str) -> None:
    with connect(make_conninfo(postgres_url, client_encoding="LATIN1", target_session_attrs="any"), "test") as opened:
        in_use = {option.keyword.decode(): option.val for option in opened.pgconn.info}
        assert (in_use["client_encoding"], in_use["target_session_attrs"]) == (b"UTF8", b"read-write")


def test_libpq_s_environment_variables_apply(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "8")
    monkeypatch.setenv("PGAPPNAME", "from-outside")
    with connect(postgres_url, "a-service") as opened:
        in_use = {option.keyword.decode(): option.val for option in opened.pgconn.info}
        assert in_use["connect_timeout"] == b"8"
        assert opened.execute("SHOW application_name").fetchone() == ("from-outside",)
