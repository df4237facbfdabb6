"""How every process connects to Postgres: to a server that takes writes, with limits, and with settings that hold.

What the connection string says about the transport wins. What our SQL relies on is set after connecting, so that
neither the string, the role nor the database can change it: see `session_settings`.
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
AsyncCursor = psycopg.AsyncCursor[TupleRow]

CONNECT_TIMEOUT_SECONDS = 3
"""For each address of each host, unless the connection string says otherwise."""
PROBE_SECONDS = 0.3
"""For each answer of a pooler that is asked for its mode."""

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
    """Return the connection parameters of process `name`: what `url` says before our defaults, but for `_OURS`."""
    given = conninfo_to_dict(url)
    # libpq's own variables are heard too, PGCONNECT_TIMEOUT among them.
    timeout = get_param(given, "connect_timeout") or str(CONNECT_TIMEOUT_SECONDS)
    return {"fallback_application_name": name, **_TRANSPORT, **given, "connect_timeout": timeout, **_OURS}


def connect(url: str, name: str, kind: type[Connection] = psycopg.Connection) -> Connection:
    """Open a connection in autocommit mode. Each address of each host has CONNECT_TIMEOUT_SECONDS to answer.

    Raises psycopg.OperationalError when no server that takes writes can be reached, UnsuitableServerError when one is
    reached that must not be used.
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
    """Open an asyncio connection in autocommit mode within the budget, of which each host has its share.

    Raises as `connect` does, and TimeoutError.
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
    """Try every address of every host. An address has its share of the time that is left: one may be silent."""
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
    """Return which of two failures says more: that of a server that answered."""
    return before if before is not None and isinstance(error, TimeoutError) else error


def _check_pooler(url: str, name: str) -> None:
    """Refuse a pooler that does not keep sessions; see there."""
    pooler.check(lambda: _Probe.connect(**parameters(url, name) | {"connect_timeout": "2"}, prepare_threshold=None))


async def _check_pooler_async(url: str, name: str) -> None:
    """Do as `_check_pooler` without holding the loop up. A pooler that does not say in time may be a full one."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await asyncio.to_thread(_check_pooler, url, name)
    except TimeoutError:
        return
