"""A real PgBouncer in front of Postgres: session mode works, and every process refuses other modes with one line."""

import asyncio
import json
import os
import subprocess
import sys

import psycopg
import pytest
from click.testing import CliRunner

from orderstream import cli
from orderstream.postgres import connect as connecting
from orderstream.postgres.connect import connect, connect_async
from orderstream.postgres.faults import UnsuitableServerError, is_fatal
from orderstream.settings import Settings
from tests.integration.api_gateway.conftest import free_port
from tests.support.pgbouncer import pgbouncer

_LIMIT_SECONDS = 60.0
_SAYS = "a pooler in transaction or statement mode is in front of Postgres"
_FOR_ALL = "ignore_startup_parameters = extra_float_digits,options"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pooler that does not respond in time is accepted. On a busy machine, PgBouncer may need longer than 0.3 s."""
    monkeypatch.setattr(connecting, "PROBE_SECONDS", 2.5)
    monkeypatch.setattr(connecting._Probe, "answer_limit_seconds", 2.5)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("pool_size", [1, 20])
@pytest.mark.parametrize("more", ["", "server_round_robin = 1", _FOR_ALL])
def test_a_pool_that_does_not_keep_sessions_is_refused(postgres_url: str, mode: str, pool_size: int, more: str) -> None:
    with pgbouncer(postgres_url, free_port(), mode, pool_size, more) as url:
        for attempt in range(3):
            with pytest.raises(UnsuitableServerError, match=_SAYS) as refused:
                connect(url, f"test {attempt}").close()
            assert is_fatal(refused.value)
        with pytest.raises(UnsuitableServerError, match=_SAYS):
            asyncio.run(connect_async(url, "test"))


def test_a_pool_without_sessions_is_refused_while_others_use_it(postgres_url: str) -> None:
    """Other clients take and return server connections, also the connection that the check waits for."""
    with (
        pgbouncer(postgres_url, free_port(), "transaction") as url,
        psycopg.connect(url, prepare_threshold=None) as first,
        psycopg.connect(url, prepare_threshold=None) as second,
    ):
        for holder in (first, second):
            holder.execute("SELECT 1")
        with pytest.raises(UnsuitableServerError, match=_SAYS):
            connect(url, "test")


def test_a_session_mode_pool_works_and_has_every_setting(postgres_url: str) -> None:
    with pgbouncer(postgres_url, free_port(), "session") as url, connect(url, "test") as opened:
        for _ in range(3):
            assert opened.execute("SELECT count(*) FROM orders WHERE id = %s", ("a",)).fetchone() == (0,)
        assert opened.execute("SHOW enable_seqscan").fetchone() == ("off",)
        assert opened.execute("SHOW statement_timeout").fetchone() == ("10s",)


def test_a_session_mode_pool_works_for_the_gateway(postgres_url: str) -> None:
    async def ask(url: str) -> object:
        async with await connect_async(url, "test") as opened:
            cursor = await opened.execute("SHOW enable_seqscan")
            return await cursor.fetchone()

    with pgbouncer(postgres_url, free_port(), "session") as url:
        assert asyncio.run(ask(url)) == ("off",)


def test_a_session_mode_pool_without_a_free_connection_is_accepted(postgres_url: str) -> None:
    """The check gets no connection, because the session has the only one."""
    with pgbouncer(postgres_url, free_port(), "session", pool_size=1) as url, connect(url, "test") as opened:
        assert opened.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("command", ["api-gateway", "outbox-relay", "order-service"])
def test_a_service_refuses_a_pool_without_sessions_with_one_line(settings: Settings, command: str) -> None:
    with pgbouncer(settings.postgres_url, free_port(), "transaction") as url:
        rest = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
        given = {"POSTGRES_URL": url, "KAFKA_BROKERS": settings.kafka_brokers, "REDIS_URL": settings.redis_url}
        ended = subprocess.run(
            [sys.executable, "-m", "orderstream.cli", command],
            env=rest | given | {"PORT": str(free_port()), "LOG_FORMAT": "json"},
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
    assert ended.returncode == 1
    failures = [line for line in map(json.loads, ended.stderr.splitlines()) if line["level"] == "error"]
    assert failures[-1]["event"] == "stopped_by_failure"
    assert failures[-1]["error"].startswith(_SAYS)
    assert "exception" not in failures[-1]


def test_a_command_refuses_a_pool_without_sessions_with_one_line(postgres_url: str) -> None:
    with pgbouncer(postgres_url, free_port(), "transaction") as url:
        ended = CliRunner(env={"POSTGRES_URL": url}).invoke(cli.main, ["migrate"])
    assert ended.exit_code == 1
    (line,) = ended.output.splitlines()
    assert line.startswith(f"Error: {_SAYS}")
