"""The session settings that our SQL relies on: set after connecting, so that no other source overrides them.

The connection string (`options`), the role and the database may each carry settings. One that changes what we read or
write, how durable a commit is, or how long we wait would break a promise without an error.
"""

from collections.abc import Sequence
from typing import Any, Final, LiteralString

from orderstream.postgres.faults import UnsuitableServerError

STATEMENT_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT_SECONDS = 5
IDLE_IN_TRANSACTION_TIMEOUT_SECONDS = 45
"""Longer than the relay waits for Kafka's acknowledgements while it holds its rows."""

PINNED: Final = {
    # How long a statement, a lock and a silent client are waited for. Only idle sessions are ours to keep.
    "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_SECONDS}s",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    # What a text means that goes in or comes out.
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # What a transaction is.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "row_security": "on",
    "exit_on_error": "off",
    # Plans by index. A plan prepared while a table is empty would else scan it until autovacuum comes by.
    "enable_seqscan": "off",
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
    "enable_bitmapscan": "on",
    "enable_nestloop": "on",
    "plan_cache_mode": "auto",
    "jit": "off",
}
"""By name. A setting that the server's version does not have is left out."""

_QUERY: LiteralString = """
SELECT
    pg_backend_pid(),
    current_setting('server_encoding'),
    current_setting('session_replication_role'),
    (SELECT count(set_config(name, value, FALSE)) FROM (
        SELECT name, value
        FROM unnest(%(names)s::text[], %(values)s::text[]) AS pinned (name, value)
        WHERE current_setting(name, TRUE) IS NOT NULL
        UNION ALL
        SELECT 'synchronous_commit', CASE
            WHEN current_setting('synchronous_commit') = 'remote_apply' THEN 'remote_apply'
            ELSE 'on'
        END
        UNION ALL
        SELECT 'search_path', coalesce(
            (SELECT quote_ident(nspname) || ', pg_temp'
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = coalesce(to_regclass('schema_migrations'), to_regclass('public.schema_migrations'))),
            current_setting('search_path')
        )
    ) AS settings WHERE pg_backend_pid() = %(pid)s)
"""


def statement(pid: int) -> tuple[LiteralString, dict[str, object]]:
    """Return the query that sets everything, and its parameters; it sets nothing in a backend other than `pid`.

    Its row is what `check` takes. The schema is the one that holds our tables by the session's search_path, else
    `public`. A synchronous_commit stronger than `on` stays.
    """
    return _QUERY, {"names": list(PINNED), "values": list(PINNED.values()), "pid": pid}


def check(row: Sequence[Any] | None) -> int:
    """Return the backend's pid of a row of `statement`. Raises UnsuitableServerError when orders cannot be stored."""
    assert row is not None
    pid, encoding, replication_role, _ = row
    if encoding != "UTF8":
        raise UnsuitableServerError(
            f"the database has the encoding {encoding}, and orders need UTF8: create it with ENCODING 'UTF8'"
        )
    if replication_role != "origin":
        raise UnsuitableServerError(
            f"session_replication_role is {replication_role}, which turns foreign keys off: it must be origin"
        )
    return int(pid)
