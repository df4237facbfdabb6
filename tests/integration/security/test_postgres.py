"""PostgreSQL over TLS with a password: the options of libpq work in the URL and in libpq's own variables."""

import asyncio

import psycopg
import pytest

from orderstream.postgres.connect import connect, connect_async
from orderstream.postgres.faults import is_fatal
from orderstream.postgres.migrate import migrate
from tests.integration.security.conftest import PASSWORD, USER, Certificates, postgres_url


def test_queries_work_over_tls(secured_database: str, certificates: Certificates) -> None:
    url = postgres_url(secured_database, certificates.trusted)
    assert migrate(url) == [], "the schema is up to date, and migrate reached it"
    with connect(url, "test") as connection:
        assert connection.pgconn.ssl_in_use
        assert connection.execute("SELECT current_user, count(*) FROM orders").fetchall() == [(USER, 0)]


def test_queries_of_the_gateway_work_over_tls(secured_database: str, certificates: Certificates) -> None:
    async def query() -> tuple[bool, object]:
        async with await connect_async(postgres_url(secured_database, certificates.trusted), "test") as connection:
            cursor = await connection.execute("SELECT current_user")
            return connection.pgconn.ssl_in_use, await cursor.fetchone()

    assert asyncio.run(query()) == (True, (USER,))


def test_libpq_s_own_environment_variables_work(
    secured_database: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", str(certificates.trusted))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with connect(f"postgresql://{USER}@{secured_database}", "test") as connection:
        assert connection.pgconn.ssl_in_use


def _refused(url: str) -> psycopg.Error:
    with pytest.raises(psycopg.OperationalError) as caught:
        connect(url, "test")
    return caught.value


def test_a_wrong_password_is_a_fatal_error(secured_database: str, certificates: Certificates) -> None:
    error = _refused(postgres_url(secured_database, certificates.trusted, "wrong"))
    assert f'password authentication failed for user "{USER}"' in str(error)
    assert is_fatal(error)
