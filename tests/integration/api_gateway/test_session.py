"""The session finds the host that accepts writes. A closed idle connection does not affect the readiness."""

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import scalar_row, tuple_row

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.api_gateway.session import Session
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Start, free_port
from tests.integration.postgres.test_session import read_only
from tests.support.waiting import wait_until

_PID = "SELECT pg_backend_pid()"
BUDGET_SECONDS = 4.0
"""More than the readiness check of a gateway has, because a busy machine opens a connection slowly."""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def behind(postgres_url: str, *ports: int) -> str:
    """Return the URL with one more host for each port, before its own host."""
    own = conninfo_to_dict(postgres_url)
    return make_conninfo(
        postgres_url,
        host=",".join(["127.0.0.1"] * len(ports) + [str(own["host"])]),
        port=",".join(map(str, [*ports, own["port"]])),
    )


def run(url: str, scenario: Callable[[Session], Awaitable[None]], budget_seconds: float = BUDGET_SECONDS) -> None:
    """Run a scenario with a session."""

    async def main() -> None:
        async with Session(url, "test", budget_seconds) as session:
            await scenario(session)

    asyncio.run(main())


async def pid(session: Session) -> int:
    (server_pid,) = await session.check(_PID, {}, scalar_row)
    return int(server_pid)


def test_every_postgres_host_gets_a_share_of_the_time_budget(postgres_url: str, silent_port: int) -> None:
    async def scenario(session: Session) -> None:
        assert await pid(session)

    run(behind(postgres_url, silent_port), scenario)
    run(behind(postgres_url, free_port(), silent_port), scenario)


def test_every_address_of_a_postgres_host_name_gets_a_share_of_the_time_budget(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name has two addresses, and the first one does not answer."""
    given = conninfo_to_dict(postgres_url)
    port = int(str(given["port"]))
    with socket.create_server(("127.0.0.2", port)):
        resolved = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")
        ]

        async def scenario(session: Session) -> None:
            async def addresses(*_arguments: object, **_options: object) -> list[object]:
                return list(resolved)

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
            assert await pid(session)

        run(make_conninfo(postgres_url, host="db.example"), scenario)


def test_a_read_only_postgres_host_is_skipped(postgres_url: str, connection: Connection) -> None:
    """There is no session until a host accepts writes."""

    async def scenario(session: Session) -> None:
        with read_only(postgres_url), pytest.raises(TryAgainError) as refused:
            await pid(session)
        assert "read-only" in str(refused.value.__cause__)
        assert await pid(session)

    run(postgres_url, scenario)


def test_a_connection_that_became_read_only_is_closed(postgres_url: str) -> None:
    async def write(session: Session) -> None:
        async with session.transaction() as tx:
            await tx.execute("SET TRANSACTION READ ONLY")
            await tx.execute("DELETE FROM orders")

    async def scenario(session: Session) -> None:
        before = await pid(session)
        with pytest.raises(TryAgainError):
            await write(session)
        assert await pid(session) != before

    run(postgres_url, scenario)


@pytest.mark.parametrize("state", ["ZZ123", "XX000", "26000", "42P05", "08P01", "0A000", "25P02"])
def test_after_an_error_of_the_session_the_gateway_retries_on_a_new_connection(postgres_url: str, state: str) -> None:
    async def scenario(session: Session) -> None:
        before = await pid(session)
        with pytest.raises(TryAgainError):
            await session.execute(f"DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$", {}, tuple_row)
        assert await pid(session) != before

    run(postgres_url, scenario)


def test_a_readiness_check_succeeds_although_its_idle_connection_was_closed(
    postgres_url: str, connection: Connection
) -> None:
    async def scenario(session: Session) -> None:
        for _ in range(3):
            before = await pid(session)
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", (before,))
            assert await pid(session) != before

    run(postgres_url, scenario)


def test_a_readiness_check_succeeds_although_its_idle_connection_hangs(postgres_url: str) -> None:
    async def scenario(session: Session) -> None:
        before = await pid(session)
        os.kill(before, signal.SIGSTOP)
        try:
            assert await pid(session) != before
        finally:
            os.kill(before, signal.SIGCONT)

    run(postgres_url, scenario)


def test_readiness_and_the_outbox_limit_survive_closed_connections(
    start: Start, postgres_url: str, connection: Connection
) -> None:
    gateway = start()
    wait_until(lambda: gateway.client.get("/readyz").status_code == 200, 20, "the gateway is ready")
    for _ in range(5):
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert gateway.client.get("/readyz").status_code == 200
    assert "outbox_not_measured" not in gateway.log


def test_a_gateway_whose_first_host_is_silent_becomes_ready(start: Start, postgres_url: str, silent_port: int) -> None:
    gateway = start(POSTGRES_URL=behind(postgres_url, silent_port))
    wait_until(lambda: gateway.client.get("/readyz").status_code == 200, 20, "the gateway is ready")


def test_a_gateway_on_a_read_only_server_is_ready_when_the_server_accepts_writes(
    start: Start, postgres_url: str
) -> None:
    with read_only(postgres_url):
        gateway = start()
        assert gateway.client.get("/readyz").status_code == 503
        assert "read-only" in gateway.log
    wait_until(lambda: gateway.client.get("/readyz").status_code == 200, 20, "the gateway is ready")
