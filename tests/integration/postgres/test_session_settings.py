"""The connection string, the role and the database cannot change the settings that our SQL relies on."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orderstream.postgres.connect import Connection, connect, connect_async
from orderstream.postgres.faults import UnsuitableServerError, is_fatal
from orderstream.postgres.migrate import migrate
from orderstream.postgres.session_settings import PINNED
from tests.support.databases import Databases

HOSTILE = {
    "statement_timeout": "7s",
    "lock_timeout": "7s",
    "idle_in_transaction_session_timeout": "7s",
    "transaction_timeout": "7s",
    "idle_session_timeout": "7s",
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "row_security": "off",
    "exit_on_error": "on",
    "enable_seqscan": "on",
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
    "enable_bitmapscan": "off",
    "enable_nestloop": "off",
    "plan_cache_mode": "force_custom_plan",
    "jit": "on",
}
NAMES = [*PINNED, "synchronous_commit", "search_path", "client_encoding"]


@contextmanager
def _set(url: str, scope: str, values: dict[str, str]) -> Iterator[None]:
    """Store settings in a database, or in a role of a database, until the block ends."""
    given = conninfo_to_dict(url)
    names = {"name": sql.Identifier(str(given["dbname"])), "role": sql.Identifier(str(given["user"]))}
    target = sql.SQL({"database": "DATABASE {name}", "role": "ROLE {role} IN DATABASE {name}"}[scope]).format(**names)
    with psycopg.connect(url, autocommit=True) as connection:
        for name, value in values.items():
            connection.execute(
                sql.SQL("ALTER {} SET {} = {}").format(target, sql.Identifier(name), sql.Literal(value)),
            )
    yield


def _shown(connection: Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", (NAMES,))
    return dict(rows.fetchall())


def test_every_pinned_setting_is_tested_with_another_value() -> None:
    assert HOSTILE.keys() == PINNED.keys()
    assert all(HOSTILE[name] != PINNED[name] for name in PINNED)


def _assert_pinned(shown: dict[str, str]) -> None:
    assert shown == dict(PINNED) | {
        "synchronous_commit": "on",
        "search_path": "public, pg_temp",
        "client_encoding": "UTF8",
    }


@pytest.mark.parametrize("scope", ["database", "role"])
def test_settings_of_the_database_or_the_role_are_overridden(postgres_url: str, scope: str) -> None:
    values = HOSTILE | {"synchronous_commit": "off", "search_path": "nowhere", "client_encoding": "LATIN1"}
    with _set(postgres_url, scope, values), connect(postgres_url, "test") as connection:
        _assert_pinned(_shown(connection))


def test_settings_of_the_connection_string_are_overridden(postgres_url: str) -> None:
    values = HOSTILE | {"synchronous_commit": "off", "search_path": "nowhere"}
    escaped = {name: value.replace(" ", "\\ ") for name, value in values.items()}
    options = quote(" ".join(f"-c {name}={value}" for name, value in escaped.items()))
    url = f"{postgres_url}?client_encoding=LATIN1&options={options}"
    with connect(url, "test") as connection:
        _assert_pinned(_shown(connection))

    async def shown() -> dict[str, str]:
        async with await connect_async(url, "test") as asynchronous:
            cursor = await asynchronous.execute(
                "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", (NAMES,)
            )
            return dict(await cursor.fetchall())

    _assert_pinned(asyncio.run(shown()))


@pytest.mark.parametrize("given", ["off", "local", "remote_write", "on"])
def test_a_commit_is_never_less_durable_than_on(postgres_url: str, given: str) -> None:
    with (
        _set(postgres_url, "database", {"synchronous_commit": given}),
        connect(postgres_url, "test") as connection,
    ):
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_a_more_durable_commit_is_kept(postgres_url: str) -> None:
    with (
        _set(postgres_url, "role", {"synchronous_commit": "remote_apply"}),
        connect(postgres_url, "test") as connection,
    ):
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("remote_apply",)


def test_tables_in_another_schema_are_found(databases: Databases) -> None:
    with databases.empty() as url:
        with psycopg.connect(url) as connection:
            connection.execute('CREATE SCHEMA "My Shop"')
        with _set(url, "database", {"search_path": "My Shop"}):
            assert migrate(url)
            assert migrate(url) == []
            with connect(url, "test") as opened:
                assert opened.execute(
                    "SELECT to_regclass('orders')::text, to_regclass('public.orders')"
                ).fetchone() == (
                    "orders",
                    None,
                )
                assert opened.execute("SHOW search_path").fetchone() == ('"My Shop", pg_temp',)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_with_another_encoding_is_refused_with_one_line(databases: Databases, encoding: str) -> None:
    with databases.empty() as server, psycopg.connect(server, autocommit=True) as connection:
        name = f"in_{encoding.lower()}"
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0").format(
                sql.Identifier(name), sql.Literal(encoding)
            )
        )
        url = f"{server.rpartition('/')[0]}/{name}"
        try:
            for refused in (lambda: migrate(url), lambda: connect(url, "test")):
                with pytest.raises(UnsuitableServerError, match=f"the encoding {encoding}, .* UTF8") as error:
                    refused()
                assert is_fatal(error.value)
                assert "\n" not in str(error.value)
            with pytest.raises(UnsuitableServerError):
                asyncio.run(connect_async(url, "test"))
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_sessions_without_foreign_keys_are_refused(postgres_url: str) -> None:
    with (
        _set(postgres_url, "database", {"session_replication_role": "replica"}),
        pytest.raises(UnsuitableServerError, match="session_replication_role is replica"),
    ):
        connect(postgres_url, "test")


def test_an_ordinary_role_can_set_all_settings(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as superuser:
        superuser.execute("DROP ROLE IF EXISTS ordinary")
        superuser.execute("CREATE ROLE ordinary LOGIN PASSWORD 'ordinary'")
    with connect(make_conninfo(postgres_url, user="ordinary", password="ordinary"), "test") as connection:
        _assert_pinned(_shown(connection))
