"""Connects every process to Postgres: to a server that accepts writes, with time limits and with fixed settings.

The connection string overrides our defaults for the transport. The settings that our SQL relies on are set after
connecting, so that the connection string, the role and the database cannot change them: see `session_settings`.
"""

import asyncio
import random
from typing import Any

import psycopg
from psycopg._conninfo_attempts_async import conninfo_attempts_async
from psycopg._conninfo_utils import get_param, split_attempts
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from orderstream.postgres import pooler, session_settings
from orderstream.postgres.limited import LimitedConnection

Connection = psycopg.Connection[TupleRow]
AsyncConnection = psycopg.AsyncConnection[TupleRow]

CONNECT_TIMEOUT_SECONDS = 3
"""Time limit for each address of each host, unless the connection string sets another one."""
PROBE_SECONDS = 0.3
"""Time limit for each response while the mode of a pooler is detected."""

_TRANSPORT = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_OURS = {"client_encoding": "UTF8", "target_session_attrs": "read-write"}
"""psycopg sends text as UTF-8, and every process writes."""


class _Probe(LimitedConnection):
    answer_limit_seconds = PROBE_SECONDS


def parameters(url: str, name: str) -> dict[str, Any]:
    """Return the connection parameters of process `name`. `url` overrides all our defaults except `_OURS`."""
    given = conninfo_to_dict(url)
    # libpq's own environment variables also apply, such as PGCONNECT_TIMEOUT.
    timeout = get_param(given, "connect_timeout") or str(CONNECT_TIMEOUT_SECONDS)
    return {"fallback_application_name": name, **_TRANSPORT, **given, "connect_timeout": timeout, **_OURS}


def connect(url: str, name: str, kind: type[Connection] = psycopg.Connection) -> Connection:
    """Open a connection in autocommit mode. Each address of each host has CONNECT_TIMEOUT_SECONDS to answer.

    Raises psycopg.OperationalError if no server that accepts writes can be reached, and UnsuitableServerError if the
    server must not be used.
    """
    opened = kind.connect(**parameters(url, name), autocommit=True, prepare_threshold=0)
    try:
        known = opened.info.backend_pid
        pid = session_settings.check(opened.execute(*session_settings.statement(known), prepare=False).fetchone())
        if pid != known:
            _check_pooler(url, name)
            opened.execute(*session_settings.statement(pid), prepare=False)
    except BaseException:
        opened.close()
        raise
    return opened


async def connect_async(url: str, name: str, budget_seconds: float = CONNECT_TIMEOUT_SECONDS) -> AsyncConnection:
    """Open an asyncio connection in autocommit mode within the budget. The hosts share the budget.

    Raises the same errors as `connect`, and TimeoutError.
    """
    async with asyncio.timeout(budget_seconds):
        opened = await _first_that_answers(parameters(url, name), budget_seconds)
        try:
            known = opened.info.backend_pid
            cursor = await opened.execute(*session_settings.statement(known), prepare=False)
            pid = session_settings.check(await cursor.fetchone())
            if pid != known:
                await _check_pooler_async(url, name)
                await opened.execute(*session_settings.statement(pid), prepare=False)
        except BaseException:
            await opened.close()
            raise
    return opened


async def _first_that_answers(given: dict[str, Any], budget_seconds: float) -> AsyncConnection:
    """Try every address of every host. Each address has a share of the remaining time, since one may not respond."""
    hosts = split_attempts(given)
    if given.get("load_balance_hosts") == "random":
        random.shuffle(hosts)
    clock = asyncio.get_running_loop().time
    ends_at = clock() + budget_seconds
    failure: Exception | None = None
    for index, host in enumerate(hosts):
        host_ends_at = clock() + (ends_at - clock()) / (len(hosts) - index)
        try:
            async with asyncio.timeout_at(host_ends_at):
                addresses = await conninfo_attempts_async(host)
            for number, address in enumerate(addresses):
                share = (host_ends_at - clock()) / (len(addresses) - number)
                try:
                    async with asyncio.timeout(share):
                        return await _open(make_conninfo("", **address))
                except (psycopg.Error, TimeoutError) as error:
                    failure = _worse(failure, error)
        except (psycopg.Error, TimeoutError) as error:
            failure = _worse(failure, error)
    assert failure is not None
    raise failure


async def _open(conninfo: str) -> AsyncConnection:
    return await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=0)


def _worse(before: Exception | None, error: Exception) -> Exception:
    """Return the more informative of two failures. The failure of a server that responded goes before a timeout."""
    return before if before is not None and isinstance(error, TimeoutError) else error


def _check_pooler(url: str, name: str) -> None:
    """Raise UnsuitableServerError if a pooler in between does not keep sessions."""
    pooler.check(lambda: _Probe.connect(**parameters(url, name) | {"connect_timeout": "2"}, prepare_threshold=None))


async def _check_pooler_async(url: str, name: str) -> None:
    """Run `_check_pooler` in a thread. A pooler that does not respond in time may be full, and is accepted."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await asyncio.to_thread(_check_pooler, url, name)
    except TimeoutError:
        return
