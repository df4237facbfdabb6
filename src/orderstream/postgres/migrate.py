"""Brings a database to the schema of this version: plain SQL files, in order, each once, under an advisory lock."""

import hashlib
import re
from importlib import resources

import psycopg

from orderstream.postgres.connect import CONNECT_TIMEOUT_SECONDS

LOCK_KEY = 0x0DE25742
_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

_JOURNAL = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name       TEXT PRIMARY KEY,
    sha256     TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)"""


class MigrationError(Exception):
    """The database and the files disagree, and going on could lose data."""


def migrations() -> list[tuple[str, str]]:
    """Return name and text of every migration file, in order of number."""
    folder = resources.files("orderstream.postgres.migrations")
    names = sorted(entry.name for entry in folder.iterdir() if _FILE.fullmatch(entry.name))
    return [(name, folder.joinpath(name).read_text(encoding="utf-8")) for name in names]


def migrate(postgres_url: str) -> list[str]:
    """Apply what is missing, in one transaction, and return the names applied.

    Concurrent callers wait for each other. Raises MigrationError when an applied file has changed since, or the
    database was migrated by a newer version; psycopg.Error when the database refuses.
    """
    with psycopg.connect(
        postgres_url, connect_timeout=CONNECT_TIMEOUT_SECONDS, application_name="migrate"
    ) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        connection.execute(_JOURNAL)
        rows = connection.execute("SELECT name, sha256 FROM schema_migrations").fetchall()
        done: dict[str, str] = dict(rows)
        files = migrations()
        _check(done, files)
        missing = [(name, text) for name, text in files if name not in done]
        for name, text in missing:
            connection.execute(text.encode())
            connection.execute("INSERT INTO schema_migrations (name, sha256) VALUES (%s, %s)", (name, _digest(text)))
        return [name for name, _ in missing]


def _check(done: dict[str, str], files: list[tuple[str, str]]) -> None:
    known = dict(files)
    if unknown := sorted(set(done) - set(known)):
        raise MigrationError(f"the database was migrated by a newer version: {', '.join(unknown)}")
    if changed := [name for name, digest in done.items() if _digest(known[name]) != digest]:
        raise MigrationError(f"these migrations were changed after they had been applied: {', '.join(sorted(changed))}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
