"""Brings a database to the schema of this version: plain SQL files, in order, each once, under an advisory lock."""

import hashlib
import re
from importlib import resources

import psycopg

from orderstream.postgres.connect import CONNECT_TIMEOUT_SECONDS, Connection

LOCK_TIMEOUT_SECONDS = 5
"""Whoever asks for a table's lock after us waits behind us: so long at most is every POST held up by a wait of ours."""
LOCK_KEY = 0x0DE25742
_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

_JOURNAL = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name       TEXT PRIMARY KEY,
    sha256     TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)"""


class MigrationError(Exception):
    """The database and the files disagree, and going on could lose data; or a table was in use for too long."""


def migrations() -> list[tuple[str, str]]:
    """Return name and text of every migration file, in order of number."""
    folder = resources.files("orderstream.postgres.migrations")
    names = sorted(entry.name for entry in folder.iterdir() if _FILE.fullmatch(entry.name))
    return [(name, folder.joinpath(name).read_text(encoding="utf-8")) for name in names]


def migrate(postgres_url: str) -> list[str]:
    """Apply what is missing, in one transaction, and return the names applied.

    Concurrent callers wait for each other, without a limit; a table that is in use is waited for LOCK_TIMEOUT_SECONDS.
    Raises MigrationError when that was not enough, an applied file has changed since, or the database was migrated by a
    newer version; psycopg.Error when the database refuses. Nothing is changed then.
    """
    with psycopg.connect(
        postgres_url, connect_timeout=CONNECT_TIMEOUT_SECONDS, application_name="migrate"
    ) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET lock_timeout = 0")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        connection.execute(_JOURNAL)
        rows = connection.execute("SELECT name, sha256 FROM schema_migrations").fetchall()
        done: dict[str, str] = dict(rows)
        files = migrations()
        _check(done, files)
        missing = [(name, text) for name, text in files if name not in done]
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{LOCK_TIMEOUT_SECONDS}s",))
        for name, text in missing:
            _apply(connection, name, text)
        return [name for name, _ in missing]


def _apply(connection: Connection, name: str, text: str) -> None:
    try:
        connection.execute(text.encode())
    except psycopg.errors.LockNotAvailable as error:
        raise MigrationError(
            f"{name} waited {LOCK_TIMEOUT_SECONDS} s for a table that is in use, and nothing was changed; try again"
        ) from error
    connection.execute("INSERT INTO schema_migrations (name, sha256) VALUES (%s, %s)", (name, _digest(text)))


def _check(done: dict[str, str], files: list[tuple[str, str]]) -> None:
    known = dict(files)
    if unknown := sorted(set(done) - set(known)):
        raise MigrationError(f"the database was migrated by a newer version: {', '.join(unknown)}")
    if changed := [name for name, digest in done.items() if _digest(known[name]) != digest]:
        raise MigrationError(f"these migrations were changed after they had been applied: {', '.join(sorted(changed))}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
