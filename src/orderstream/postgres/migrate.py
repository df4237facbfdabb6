"""Migrates a database to the schema of this version: runs SQL files in order, each once, under an advisory lock.

A file runs in a transaction, unless its first line is `-- no transaction`. In that case its statements run one by one,
so that an index can be built while orders are written. After a failure, such a file is repeated from its first
statement. Therefore each of its statements must be harmless if it is repeated.
"""

import hashlib
import itertools
import re
import time
from importlib import resources

import psycopg

from orderstream.postgres.connect import Connection, connect

LOCK_TIMEOUT_SECONDS = 5
"""Longest wait for the lock of a table. Each POST that needs the table waits until the migration has ended."""
LOCK_PAUSE_SECONDS = 0.2
"""Pause between two attempts to take the lock of migrations."""
LOCK_KEY = 0x0DE25742
NO_TRANSACTION = "-- no transaction"
"""First line of a migration whose statements run outside a transaction."""
_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_BUILT = re.compile(r"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+IF\s+NOT\s+EXISTS\s+([a-z0-9_]+)", re.IGNORECASE)

_JOURNAL = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name       TEXT PRIMARY KEY,
    sha256     TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
)"""


class MigrationError(Exception):
    """The database and the migration files do not match, so that data could be lost; or a table was locked too long."""


def migrations() -> list[tuple[str, str]]:
    """Return the name and the text of every migration file, in the order of their numbers."""
    folder = resources.files("orderstream.postgres.migrations")
    names = sorted(entry.name for entry in folder.iterdir() if _FILE.fullmatch(entry.name))
    return [(name, folder.joinpath(name).read_text(encoding="utf-8")) for name in names]


def migrate(postgres_url: str) -> list[str]:
    """Apply the missing migrations, and return their names.

    Concurrent callers wait for each other, without a limit. A migration waits LOCK_TIMEOUT_SECONDS for a locked table.
    Raises MigrationError if the table is still locked then, if an applied file has changed, or if a newer version has
    migrated the database. Raises psycopg.Error if the database refuses a statement. Consecutive files that need a
    transaction are applied in one transaction. If it fails, it changes nothing. Earlier files stay applied.
    """
    with _connect(postgres_url) as guard, _connect(postgres_url) as connection:
        _wait_for_other_migrations(guard)
        connection.autocommit = True
        connection.execute("SET client_min_messages = warning")
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET lock_timeout = 0")
        files = migrations()
        applied: list[str] = []
        while missing := _missing(connection, files):
            applied += _apply_outside(connection, missing[0]) or _apply_together(connection, missing)
        return applied


def _connect(postgres_url: str) -> Connection:
    """Connect without autocommit. A file may hold several statements, which cannot be prepared as one."""
    connection = connect(postgres_url, "migrate")
    connection.prepare_threshold = None
    connection.autocommit = False
    return connection


def _wait_for_other_migrations(guard: Connection) -> None:
    """Take the lock of migrations in a transaction of `guard`, which the caller leaves open until the end.

    This function polls the lock. A statement that waits for the lock would hold a snapshot, and a migration that builds
    an index concurrently waits until every older snapshot has ended. A statement with parameters would also hold a
    snapshot, because its portal stays open.
    """
    while True:
        guard.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        row = guard.execute(f"SELECT pg_try_advisory_xact_lock({LOCK_KEY})".encode()).fetchone()
        if row is not None and row[0]:
            return
        guard.rollback()
        time.sleep(LOCK_PAUSE_SECONDS)


def _missing(connection: Connection, files: list[tuple[str, str]]) -> list[tuple[str, str]]:
    rows = []
    if connection.execute("SELECT FROM pg_class WHERE oid = to_regclass('schema_migrations')").fetchone() is not None:
        rows = connection.execute("SELECT name, sha256 FROM schema_migrations").fetchall()
    done: dict[str, str] = dict(rows)
    _check(done, files)
    return [(name, text) for name, text in files if name not in done]


def _apply_together(connection: Connection, missing: list[tuple[str, str]]) -> list[str]:
    """Apply the files before the first one without a transaction, in one transaction, and return their names."""
    together = list(itertools.takewhile(lambda file: not file[1].startswith(NO_TRANSACTION), missing))
    with connection.transaction():
        connection.execute(_JOURNAL)
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{LOCK_TIMEOUT_SECONDS}s",))
        for name, text in together:
            try:
                connection.execute(text.encode())
            except psycopg.errors.LockNotAvailable as error:
                raise MigrationError(
                    f"{name} waited {LOCK_TIMEOUT_SECONDS} s for a table that is in use, and nothing was changed;"
                    " try again"
                ) from error
            _note(connection, name, text)
    return [name for name, _ in together]


def _apply_outside(connection: Connection, file: tuple[str, str]) -> list[str]:
    """Apply a file whose statements run outside a transaction. Return its name, or nothing for another file."""
    name, text = file
    if not text.startswith(NO_TRANSACTION):
        return []
    connection.execute(_JOURNAL)
    for statement in statements(text):
        if built := _BUILT.match(statement):
            _drop_if_invalid(connection, built[1])
        connection.execute(statement.encode())
    _note(connection, name, text)
    return [name]


def _note(connection: Connection, name: str, text: str) -> None:
    connection.execute("INSERT INTO schema_migrations (name, sha256) VALUES (%s, %s)", (name, _digest(text)))


def statements(text: str) -> list[str]:
    """Split the statements of a file that runs outside a transaction. Each ends with `;` at the end of a line."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return [statement.strip() for statement in re.split(r";[ \t]*(?:\n|$)", lines) if statement.strip()]


def _drop_if_invalid(connection: Connection, index: str) -> None:
    """Drop the invalid index of a failed build. Postgres never uses it, and IF NOT EXISTS would keep it."""
    query = "SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid"
    if connection.execute(query, (index,)).fetchone() is not None:
        connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}".encode())


def _check(done: dict[str, str], files: list[tuple[str, str]]) -> None:
    known = dict(files)
    if unknown := sorted(set(done) - set(known)):
        raise MigrationError(f"the database was migrated by a newer version: {', '.join(unknown)}")
    if changed := [name for name, digest in done.items() if _digest(known[name]) != digest]:
        raise MigrationError(f"these migrations were changed after they had been applied: {', '.join(sorted(changed))}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
