"""The session settings that our SQL relies on. They are set after connecting, so that no other source overrides them.

The connection string (`options`), the role and the database may each have settings. A setting that changes what we read
or write, the durability of a commit, or a time limit would break a promise without an error.
"""

from collections.abc import Sequence
from typing import Any, Final, LiteralString

from orderstream.postgres.faults import UnsuitableServerError

STATEMENT_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT_SECONDS = 5
IDLE_IN_TRANSACTION_TIMEOUT_SECONDS = 45
"""Longer than the relay waits for Kafka's acknowledgements while it has its rows locked."""

PINNED: Final = {
    # Time limits of a statement, of a lock and of an idle transaction. Idle sessions have no limit.
    "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
    "lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_SECONDS}s",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    # The meaning of text in parameters and results.
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # The properties of a transaction.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "row_security": "on",
    "exit_on_error": "off",
    # Plans use indexes. Otherwise a plan that was prepared for an empty table would scan it until autovacuum has run.
    "enable_seqscan": "off",
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
    "enable_bitmapscan": "on",
    "enable_nestloop": "on",
    # Otherwise PostgreSQL plans a prepared statement again for each execution, if the plan for an array of one id looks
    # cheaper than the plan for any array.
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
"""Values by name. A setting that the server's version does not have is skipped."""

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
    """Return the query that sets all settings, and its parameters. In a backend other than `pid`, it sets nothing.

    `check` takes its row. The search_path becomes the schema that holds our tables: the first one in the session's
    search_path, otherwise `public`. The query keeps a synchronous_commit that is stronger than `on`.
    """
    return _QUERY, {"names": list(PINNED), "values": list(PINNED.values()), "pid": pid}


def check(row: Sequence[Any] | None) -> int:
    """Return the backend's pid from a row of `statement`. Raises UnsuitableServerError if orders cannot be stored."""
    assert row is not None
    pid, encoding, replication_role, _ = row
    if encoding != "UTF8":
        raise UnsuitableServerError(
            f"the database has the encoding {encoding}, and orders need UTF8: create it with ENCODING 'UTF8'"
        )
    if replication_role != "origin":
        raise UnsuitableServerError(
            f"session_replication_role is {replication_role}, which disables foreign keys: it must be origin"
        )
    return int(pid)
