"""Databases for tests: each is a copy of a database that is migrated once per run."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from orderstream.postgres.migrate import migrate

_TEMPLATE = "template_orders"


class Databases:
    """Creates and drops databases on the server of `postgres_url`."""

    def __init__(self, postgres_url: str) -> None:
        self._server = postgres_url.rpartition("/")[0]
        self._numbers = itertools.count(1)
        # Hundreds of databases are created and dropped. None has to survive a crash of the machine.
        self._run("ALTER SYSTEM SET fsync = off")
        self._run("SELECT pg_reload_conf()")
        self._run(f"CREATE DATABASE {_TEMPLATE}")
        migrate(self._url(_TEMPLATE))

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """Yield the URL of a new database with the schema of this version and no rows."""
        with self._database(_TEMPLATE) as url:
            yield url

    @contextmanager
    def empty(self) -> Iterator[str]:
        """Yield the URL of a new database without tables."""
        with self._database("template0") as url:
            yield url

    def deadlocks(self, url: str) -> int:
        """Close all connections to a database, which completes its statistics, and return the number of deadlocks."""
        name = url.rpartition("/")[2]
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = %s", (name,)).fetchone()
        assert row is not None
        return int(row[0])

    @contextmanager
    def _database(self, template: str) -> Iterator[str]:
        name = f"test_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self._url(name)
        finally:
            self._run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _url(self, name: str) -> str:
        return f"{self._server}/{name}"

    def _run(self, statement: str) -> None:
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())
