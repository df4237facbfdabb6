"""The pipeline of a connection: responses come in the order of the requests, refusals of the server included."""

import asyncio
import math
import re
import socket
import struct
from typing import Any

import psycopg
import pytest
from starlette.types import Receive, Scope, Send

from orderstream.http_server import request_head
from orderstream.http_server.connection import QUEUED_REQUESTS_MAX
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Gateway, Start
from tests.integration.api_gateway.serving import HeldApp, read_all, respond, run, serving, until
from tests.integration.api_gateway.test_server import LIVE, POST, WAITING, read_to_the_end
from tests.support.bodies import README
from tests.support.waiting import wait_until

FIRST = b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
SECOND = b"POST /second HTTP/1.1\r\nhost: x\r\n"
LATER = {
    "a stray byte": (b"}", b"400"),
    "a stray line": (b"}\r\n\r\n", b"400"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01", b"400"),
    "no host": (b"GET /second HTTP/1.1\r\n\r\n", b"400"),
    "two lengths": (SECOND + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", b"400"),
    "a length of 6,000 digits": (SECOND + b"content-length: " + b"0" * 6_000 + b"\r\n\r\n", b"400"),
    "a head too large": (SECOND + b"x: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
    "an endless head": (SECOND + b"x: " + b"y" * 70_000, b"431"),
    "101 fields": (SECOND + b"x: y\r\n" * 100 + b"\r\n", b"431"),
    "a long path": (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", b"414"),
    "a bad chunk": (SECOND + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", b"400"),
    "endless trailers": (SECOND + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 102, b"431"),
    "another coding": (SECOND + b"transfer-encoding: gzip, chunked\r\n\r\n", b"501"),
    "an unknown method": (b"BREW /second HTTP/1.1\r\nhost: x\r\n\r\n", b"501"),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n", b"501"),
    "another expectation": (SECOND + b"expect: luck\r\n\r\n", b"417"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
}


def statuses(received: bytes) -> list[bytes]:
    """Return the statuses of all responses."""
    return re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", received)


@pytest.mark.parametrize("apart", [False, True], ids=["one segment", "two segments"])
@pytest.mark.parametrize(("later", "status"), LATER.values(), ids=LATER)
def test_a_refusal_is_sent_after_the_responses_to_earlier_requests(later: bytes, status: bytes, apart: bool) -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST if apart else FIRST + later)
            await until(lambda: app.paths, "the application has the first request")
            if apart:
                writer.write(later)
            await until(lambda: server.connection._reading_over, "the second request is refused")
            app.go.set()
            received = await read_all(reader)
            assert statuses(received) == [b"200", status]
            assert received.count(b"connection: close") == 1
            assert received.index(b"/first") < received.index(b"connection: close")
            assert b"urn:orderstream:problem:" in received
            assert b"traceresponse: 00-" in received
            assert app.paths in (["/first"], ["/first", "/second"])
            writer.close()
            await until(lambda: not server.state.connections, "the connection is closed")
            assert server.state.held_bytes == 0

    run(scenario)


@pytest.mark.parametrize(
    "half", [b"G", SECOND, SECOND + b"content-length: 9\r\n\r\nx"], ids=["a letter", "head", "body"]
)
@pytest.mark.parametrize("how", ["time", "drain"])
def test_an_incomplete_request_is_refused_after_the_responses_to_earlier_requests(half: bytes, how: str) -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app, request_timeout_seconds=0.7 if how == "time" else 20) as server:
            reader, writer = await server.open()
            writer.write(FIRST + half)
            await until(lambda: app.paths and server.connection._parser.begun, "the second request has arrived in part")
            if how == "drain":
                server.state.draining = True
                server.connection.drain()
            await until(lambda: server.connection._reading_over, "the second request is refused")
            app.go.set()
            received = await read_all(reader)
            assert statuses(received) == [b"200", b"408" if how == "time" else b"503"]
            assert received.index(b"/first") < received.index(b"connection: close")

    run(scenario)


def test_each_request_has_its_own_time_limit() -> None:
    async def scenario() -> None:
        app = HeldApp()
        app.go.set()
        async with serving(app, request_timeout_seconds=0.7) as server:
            reader, writer = await server.open()
            writer.write(LIVE)
            await reader.readuntil(b"/livez")
            writer.write(SECOND)
            assert statuses(await read_all(reader)) == [b"408"]

    run(scenario)


def test_the_time_limit_of_a_connection_is_off_while_the_application_handles_a_request() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST)
            await until(lambda: app.paths, "the application has the first request")
            assert server.connection._deadline._at == math.inf
            app.go.set()
            await reader.readuntil(b"/first")
            assert server.connection._deadline._at < math.inf

    run(scenario)


def test_a_body_that_exceeds_the_memory_limit_is_refused_after_the_responses_to_earlier_requests() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app, requests_bytes=20_000) as server:
            reader, writer = await server.open()
            writer.write(FIRST + SECOND + b"content-length: 40000\r\n\r\n" + b"x" * 30_000)
            await until(lambda: server.connection._reading_over, "the second request is refused")
            app.go.set()
            received = await read_all(reader)
            assert statuses(received) == [b"200", b"503"]
            assert b"retry-after: 1\r\n" in received

    run(scenario)


def test_a_request_whose_client_has_disconnected_ends_without_its_body() -> None:
    async def scenario() -> None:
        go = asyncio.Event()
        received: list[str] = []

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await go.wait()
            received.append((await receive())["type"])

        async with serving(late) as server:
            _, writer = await server.open()
            writer.write(FIRST)
            await until(lambda: server.state.tasks, "the application has the request")
            reset_on_close = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
            writer.transport.abort()
            await until(lambda: not server.state.connections, "the connection is closed")
            go.set()
            await until(lambda: received, "the application has continued")
            assert received == ["http.disconnect"]

    run(scenario)


def test_a_bug_in_parsing_does_not_affect_earlier_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_given: object) -> None:
        raise ValueError("a bug")

    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST)
            await until(lambda: app.paths, "the application has the first request")
            monkeypatch.setattr(request_head, "read_head", fail)
            writer.write(SECOND + b"\r\n")
            await until(lambda: server.connection._reading_over, "the second request is refused")
            app.go.set()
            assert statuses(await read_all(reader)) == [b"200", b"500"]

    run(scenario)


def test_the_time_limit_of_a_client_that_waits_for_100_begins_after_the_response_to_its_earlier_request() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST + SECOND + b"content-length: 2\r\nexpect: 100-continue\r\n\r\n")
            await until(lambda: len(server.connection._pipeline._exchanges) == 2, "both requests have arrived")
            assert not server.connection._timed
            app.go.set()
            await reader.readuntil(b"HTTP/1.1 100 Continue")
            assert server.connection._timed
            writer.write(b"{}")
            await reader.readuntil(b"/second")

    run(scenario)


def test_a_request_that_the_server_refuses_is_counted_in_the_metrics(shared: Gateway) -> None:
    def refusals() -> float:
        sample = 'orderstream_http_requests_total{route="unreadable",status="431"} '
        lines = shared.client.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(sample)) for line in lines if line.startswith(sample))

    before = refusals()
    with shared.connect() as sock:
        sock.sendall(LATER["101 fields"][0])
        assert statuses(read_to_the_end(sock)) == [b"431"]
    assert refusals() == before + 1


def test_a_drain_answers_all_requests_that_have_arrived() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST * 3)
            await until(lambda: len(server.connection._pipeline._exchanges) == 3, "all requests have arrived")
            server.connection.drain()
            app.go.set()
            received = await read_all(reader)
            assert statuses(received) == [b"200"] * 3
            assert received.count(b"connection: close") == 1
            assert received.rindex(b"HTTP/1.1") < received.index(b"connection: close")

    run(scenario)


def test_the_server_sends_one_503_when_a_drain_ends_with_several_open_requests() -> None:
    async def scenario() -> None:
        async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await respond(send, 503, b"")

        async with serving(stuck) as server:
            reader, writer = await server.open()
            writer.write(FIRST * 3)
            await until(lambda: len(server.connection._pipeline._exchanges) == 3, "all requests have arrived")
            server.connection.drain()
            server.connection.stop_work()
            received = await read_all(reader)
            assert statuses(received) == [b"503"]
            assert b"connection: close" in received

    run(scenario)


@pytest.mark.parametrize("rest", [b"xyz\r\n", b"1;" + b"x" * 70_000], ids=["400", "431"])
def test_a_response_that_the_application_has_begun_is_not_replaced_by_a_refusal(rest: bytes) -> None:
    """A cancel ignores its body, for example. It is done even if the rest of the body is invalid."""

    async def scenario() -> None:
        go = asyncio.Event()

        async def cancel(scope: Scope, receive: Receive, send: Send) -> None:
            await go.wait()
            await respond(send, 202, b"")

        async with serving(cancel) as server:
            reader, writer = await server.open()
            writer.write(SECOND + b"transfer-encoding: chunked\r\n\r\n" + rest)
            await until(lambda: server.connection._reading_over, "the body is refused")
            go.set()
            assert statuses(received := await read_all(reader)) == [b"202"]
            assert b"connection: close" in received

    run(scenario)


def test_an_application_that_fails_is_answered_500() -> None:
    async def scenario() -> None:
        async def fail(scope: Scope, receive: Receive, send: Send) -> None:
            return

        async with serving(fail) as server:
            reader, writer = await server.open()
            writer.write(FIRST * 2)
            assert statuses(await read_all(reader)) == [b"500"]

    run(scenario)


def test_a_client_that_has_closed_its_sending_side_gets_all_responses() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST * (QUEUED_REQUESTS_MAX + 3) + SECOND)
            writer.write_eof()
            await until(lambda: app.paths, "the application has the first request")
            app.go.set()
            assert statuses(await read_all(reader)) == [b"200"] * (QUEUED_REQUESTS_MAX + 3)
            await until(lambda: not server.state.connections, "the connection is closed")
            assert server.state.held_bytes == 0

    run(scenario)


def test_a_disconnect_ends_the_waiting_request_of_the_client() -> None:
    async def scenario() -> None:
        ended: list[str] = []

        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            ended.append("disconnected")

        async with serving(wait) as server:
            _, writer = await server.open()
            writer.write(FIRST)
            await until(lambda: server.state.tasks, "the application has the request")
            writer.close()
            await until(lambda: ended, "the request has ended")
            await until(lambda: not server.state.connections, "the connection is closed")

    run(scenario)


def test_a_stored_order_is_answered_201_although_invalid_bytes_follow_its_request(
    start: Start, postgres_url: str, connection: Connection
) -> None:
    gateway = start()
    with psycopg.connect(postgres_url) as blocker, gateway.connect() as sock:
        blocker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        sock.sendall(POST + README + b"}")
        wait_until(lambda: _waiting(connection), 10, "the commit waits for the lock")
        blocker.rollback()
        assert statuses(read_to_the_end(sock)) == [b"201", b"400"]
    row = connection.execute("SELECT count(*) FROM orders").fetchone()
    assert row == (1,)


def _waiting(connection: Connection) -> Any:
    row = connection.execute(WAITING.encode()).fetchone()
    return row and row[0]
