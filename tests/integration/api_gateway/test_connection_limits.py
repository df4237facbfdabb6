"""The limits of one connection: its queue, the size of its requests, the time to read, and the end of it."""

import contextlib

import pytest
from starlette.types import Receive, Scope, Send

from orderstream.http_server import connection as connection_module
from orderstream.http_server.connection import BODY_BUFFER_MAX_BYTES, QUEUED_REQUESTS_MAX
from orderstream.http_server.request_head import HEAD_MAX_BYTES, TARGET_MAX_BYTES
from orderstream.http_server.server_state import READ_MAX_BYTES
from tests.integration.api_gateway.conftest import Gateway
from tests.integration.api_gateway.serving import HeldApp, read_all, respond, run, serving, until
from tests.integration.api_gateway.test_server import LIVE, read_response


def test_a_connection_queues_sixteen_requests() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(LIVE * 1_000)
            await until(lambda: len(server.connection._pipeline._exchanges) == QUEUED_REQUESTS_MAX, "the queue is full")
            await until(lambda: server.connection._client.reading_paused, "reading is paused")
            assert len(server.state.tasks) == 1
            assert len(server.connection._pipeline._exchanges) == QUEUED_REQUESTS_MAX
            app.go.set()
            received = b""
            while received.count(b"HTTP/1.1 200") < 1_000:
                received += await reader.read(1 << 20)
            assert server.state.held_bytes == 0

    run(scenario)


def test_the_body_of_a_waiting_request_is_read_only_up_to_the_size_of_its_buffer() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            _, writer = await server.open()
            writer.write(LIVE + b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000)
            await until(lambda: server.connection._client.reading_paused, "reading is paused")
            waiting = server.connection._pipeline._exchanges[1]
            assert len(waiting.body) < BODY_BUFFER_MAX_BYTES + READ_MAX_BYTES
            app.go.set()
            await until(lambda: app.paths == ["/livez", "/x"] and not server.state.tasks, "both are answered")

    run(scenario)


@pytest.mark.parametrize("number", [99, 100])
def test_a_request_may_have_at_most_a_hundred_header_fields(shared: Gateway, number: int) -> None:
    with shared.connect() as sock:
        sock.sendall(LIVE[:-2] + b"x: y\r\n" * number + b"\r\n")
        assert read_response(sock).startswith(b"HTTP/1.1 200" if number == 99 else b"HTTP/1.1 431")


def test_a_request_head_may_have_at_most_64_kib(shared: Gateway) -> None:
    for more, status in ((0, b"200"), (1, b"431")):
        with shared.connect() as sock:
            sock.sendall(LIVE[:-2] + b"x: " + b"y" * (HEAD_MAX_BYTES - len(LIVE) - 5 + more) + b"\r\n\r\n")
            assert read_response(sock).startswith(b"HTTP/1.1 " + status)


def test_a_request_target_longer_than_8_kib_is_refused(shared: Gateway) -> None:
    for length, status in ((TARGET_MAX_BYTES, b"404"), (TARGET_MAX_BYTES + 1, b"414")):
        with shared.connect() as sock:
            sock.sendall(LIVE.replace(b"/livez", b"/" * length))
            assert read_response(sock).startswith(b"HTTP/1.1 " + status)


def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "KEEP_ALIVE_SECONDS", 0.05)

    async def scenario() -> None:
        app = HeldApp()
        app.go.set()
        async with serving(app, request_timeout_seconds=600) as server:
            reader, writer = await server.open()
            writer.write(LIVE)
            assert (await read_all(reader)).startswith(b"HTTP/1.1 200")

    run(scenario)


def test_the_server_closes_a_refused_connection_that_the_client_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "LINGER_SECONDS", 0.05)

    async def scenario() -> None:
        async with serving(HeldApp(), request_timeout_seconds=600) as server:
            reader, writer = await server.open()
            writer.write(b"}")
            assert (await read_all(reader)).startswith(b"HTTP/1.1 400")
            await until(lambda: not server.state.connections, "the connection is closed")

    run(scenario)


def test_a_request_does_not_begin_while_the_client_does_not_read_the_previous_response() -> None:
    async def scenario() -> None:
        async def large(scope: Scope, receive: Receive, send: Send) -> None:
            await respond(send, 200, bytes(32 << 20))

        async with serving(large) as server:
            _, writer = await server.open()
            writer.write(LIVE)
            await until(lambda: server.connection._client.write_paused, "the client does not read the response")
            writer.write(LIVE)
            await until(lambda: server.connection._pipeline._exchanges, "the second request has arrived")
            assert server.connection._pipeline._exchanges[0].task is None

    run(scenario)


def test_a_client_that_does_not_read_the_response_to_its_only_request_is_disconnected() -> None:
    async def scenario() -> None:
        async def large(scope: Scope, receive: Receive, send: Send) -> None:
            await respond(send, 200, bytes(32 << 20))

        async with serving(large, request_timeout_seconds=1.0) as server:
            _, writer = await server.open()
            writer.write(LIVE)
            await until(lambda: server.state.held_bytes > 8 << 20, "the client does not read the response")
            await until(lambda: not server.state.connections, "the connection is aborted")

    run(scenario)


def test_a_drain_does_not_wait_for_a_client_that_does_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "LINGER_SECONDS", 600)

    async def scenario() -> None:
        async with serving(HeldApp(), request_timeout_seconds=600) as server:
            reader, writer = await server.open()
            writer.write(b"}")
            assert (await read_all(reader)).startswith(b"HTTP/1.1 400")
            server.state.draining = True
            server.connection.drain()
            await until(lambda: not server.state.connections, "the connection is closed")

    run(scenario)


def test_a_connection_opened_during_a_drain_is_closed() -> None:
    async def scenario() -> None:
        async with serving(HeldApp(), request_timeout_seconds=600) as server:
            server.state.draining = True
            reader, _ = await server.open()
            assert await read_all(reader) == b""
            await until(lambda: not server.state.connections, "the connection is closed")

    run(scenario)


def test_a_client_that_reads_its_last_response_late_and_does_not_close_is_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "LINGER_SECONDS", 0.05)

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, bytes(32 << 20))

    async def scenario() -> None:
        async with serving(large, request_timeout_seconds=600) as server:
            reader, writer = await server.open()
            writer.write(LIVE[:-2] + b"connection: close\r\n\r\n")
            await until(lambda: server.connection._client.write_paused, "the client does not read the response")
            assert server.connection._closing
            assert len(await read_all(reader)) > 32 << 20
            await until(lambda: not server.state.connections, "the connection is closed")

    run(scenario)


@pytest.mark.parametrize("head", [b"}", b"POST /early HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"])
def test_the_number_of_discarded_bytes_is_limited(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr(connection_module, "DISCARD_MAX_BYTES", 1 << 20)

    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"")

    async def scenario() -> None:
        async with serving(early) as server:
            _, writer = await server.open()
            writer.write(head)
            with contextlib.suppress(ConnectionError):
                for _ in range(10_000):
                    writer.write(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
                    await writer.drain()
                pytest.fail("the server has read everything")
            await until(lambda: not server.state.connections, "the connection is closed")

    run(scenario)
