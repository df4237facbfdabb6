"""The limits of the simulator, with a server in the process of the test."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from orderstream.payment_simulator import app, server, webhooks
from orderstream.payment_simulator.faults import Faults
from orderstream.payment_simulator.ledger import Ledger
from orderstream.payment_simulator.server import PaymentServer
from orderstream.payment_simulator.store import Authorization, Store
from orderstream.payment_simulator.webhooks import Webhooks
from orderstream.telemetry.tracing import Tracer

LIMIT_SECONDS = 20
BODY = {"amount": "12.50", "currency": "EUR"}


def serve(folder: Path, faults: Faults, test: Callable[[str], Awaitable[None]]) -> None:
    """Run a test with the address of a server."""

    async def within() -> None:
        async with Ledger(Store(folder / "ledger.db", time.time)) as ledger:
            http = app.http_server(PaymentServer(ledger, faults, Tracer(None, 0), None, random.Random(1)))
            listener = await asyncio.get_running_loop().create_server(app.limited(http), "127.0.0.1", 0)
            try:
                async with asyncio.timeout(LIMIT_SECONDS):
                    await test(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
            finally:
                listener.close()
                await http.shutdown(0.1)

    asyncio.run(within())


def authorize(http: httpx.AsyncClient, key: str) -> "asyncio.Task[httpx.Response]":
    """Begin a call."""
    return asyncio.create_task(http.post("/v1/payments", json=BODY, headers={"Idempotency-Key": key}))


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection."""
    return await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


def test_the_number_of_calls_in_progress_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CALLS_MAX", 2)

    async def test(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=10) as http:
            stuck = [authorize(http, key) for key in ("a", "b")]
            while (response := await authorize(http, "c")).status_code == 200:
                pass
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert (await http.get("/livez")).status_code == 200
            for call in stuck:
                call.cancel()
            await asyncio.wait(stuck)
            while (await authorize(http, "d")).status_code == 503:
                pass

    serve(tmp_path, Faults(stuck_keys=("a", "b")), test)


def test_a_hanging_call_ends_without_an_answer_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HANG_SECONDS", 0.1)
    monkeypatch.setattr(server, "HANG_CHECK_SECONDS", 0.05)

    async def test(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=10) as http:
            with pytest.raises(httpx.TransportError):
                await authorize(http, "a")

    serve(tmp_path, Faults(hang_rate=1), test)


def test_the_number_of_connections_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "CONNECTIONS_MAX", 1)

    async def test(url: str) -> None:
        reader, writer = await connect(url)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        refused, second = await connect(url)
        assert await refused.read() == b""
        second.close()
        writer.close()

    serve(tmp_path, Faults(), test)


def test_a_connection_without_a_request_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "KEEP_ALIVE_SECONDS", 0.1)

    async def test(url: str) -> None:
        reader, writer = await connect(url)
        assert await reader.read() == b""
        writer.close()

    serve(tmp_path, Faults(), test)


def test_a_body_that_does_not_arrive_is_answered_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.1)

    async def test(url: str) -> None:
        reader, writer = await connect(url)
        writer.write(b"POST /v1/payments HTTP/1.1\r\nHost: a\r\nIdempotency-Key: a\r\nContent-Length: 9\r\n\r\n{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()

    serve(tmp_path, Faults(), test)


def test_the_number_of_webhooks_that_wait_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "QUEUE_MAX", 2)
    monkeypatch.setattr(webhooks, "SENDERS", 0)
    monkeypatch.setattr(webhooks, "DECIDED_MAX", 1)

    async def within() -> None:
        async with Ledger(Store(tmp_path / "ledger.db", time.time)) as ledger:
            for number in range(5):
                await ledger.authorize(Authorization(f"{number}", "1.00", "EUR", pending_seconds=0))
            async with Webhooks(ledger, lambda: "http://127.0.0.1:9"), asyncio.timeout(LIMIT_SECONDS):
                while any(account.payment.status == "pending" for account in await ledger.page("", 10)):
                    pass

    asyncio.run(within())
