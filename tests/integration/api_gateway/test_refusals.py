"""What the server refuses itself: it is said after the answers to earlier requests, and so that it can be read."""

import asyncio
import contextlib
import math
import re
import socket
import struct
import threading
from typing import Any

import psycopg
import pytest
from starlette.types import Receive, Scope, Send

from orderstream.api_gateway.http import request_head
from orderstream.api_gateway.http.connection import QUEUED_REQUESTS_MAX
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Gateway, Start
from tests.integration.api_gateway.serving import HeldApp, read_all, respond, run, serving, until
from tests.integration.api_gateway.test_server import CHUNKED, LIVE, POST, WAITING, to_the_end
from tests.integration.api_gateway.test_server import answer as one_answer
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
    """Return the statuses of all answers."""
    return re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", received)


@pytest.mark.parametrize("apart", [False, True], ids=["one segment", "two segments"])
@pytest.mark.parametrize(("later", "status"), LATER.values(), ids=LATER)
def test_a_refusal_is_sent_after_the_responses_to_earlier_requests(later: bytes, status: bytes, apart: bool) -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST if apart else FIRST + later)
            await until(lambda: app.paths, "the first is worked on")
            if apart:
                writer.write(later)
            await until(lambda: server.connection._reading_over, "the second is refused")
            app.go.set()
            received = await read_all(reader)
            assert statuses(received) == [b"200", status]
            assert received.count(b"connection: close") == 1
            assert received.index(b"/first") < received.index(b"connection: close")
            assert b"urn:orderstream:problem:" in received
            assert b"traceresponse: 00-" in received
            assert app.paths in (["/first"], ["/first", "/second"])
            writer.close()
            await until(lambda: not server.state.connections, "the connection is forgotten")
            assert server.state.held_bytes == 0

    run(scenario)


@pytest.mark.parametrize(
    "half", [b"G", SECOND, SECOND + b"content-length: 9\r\n\r\nx"], ids=["a letter", "head", "body"]
)
@pytest.mark.parametrize("how", ["time", "drain"])
def test_an_incomplete_request_is_refused_after_the_responses_to_earlier_requests(half: bytes, how: str) -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app, request_timeout_seconds=0.2 if how == "time" else 20) as server:
            reader, writer = await server.open()
            writer.write(FIRST + half)
            await until(lambda: app.paths and server.connection._parser.begun, "half of the second is there")
            if how == "drain":
                server.state.draining = True
                server.connection.drain()
            await until(lambda: server.connection._reading_over, "the second is refused")
            app.go.set()
            received = await read_all(reader)
            assert statuses(received) == [b"200", b"408" if how == "time" else b"503"]
            assert received.index(b"/first") < received.index(b"connection: close")

    run(scenario)


def test_each_request_has_its_own_time_limit() -> None:
    async def scenario() -> None:
        app = HeldApp()
        app.go.set()
        async with serving(app, request_timeout_seconds=0.2) as server:
            reader, writer = await server.open()
            writer.write(LIVE)
            await reader.readuntil(b"/livez")
            writer.write(SECOND)
            assert statuses(await read_all(reader)) == [b"408"]

    run(scenario)


def test_no_deadline_runs_while_the_application_works() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST)
            await until(lambda: app.paths, "the first is worked on")
            assert server.connection._deadline._at == math.inf
            app.go.set()
            await reader.readuntil(b"/first")
            assert server.connection._deadline._at < math.inf

    run(scenario)


def test_a_body_without_room_is_refused_after_the_responses_to_earlier_requests() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app, requests_bytes=20_000) as server:
            reader, writer = await server.open()
            writer.write(FIRST + SECOND + b"content-length: 40000\r\n\r\n" + b"x" * 30_000)
            await until(lambda: server.connection._reading_over, "the second is refused")
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
            await until(lambda: server.state.tasks, "it is worked on")
            reset_on_close = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
            writer.transport.abort()
            await until(lambda: not server.state.connections, "the connection is forgotten")
            go.set()
            await until(lambda: received, "it has gone on")
            assert received == ["http.disconnect"]

    run(scenario)


def test_a_bug_in_parsing_does_not_affect_earlier_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_given: object) -> None:
        raise ValueError("a defect")

    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST)
            await until(lambda: app.paths, "the first is worked on")
            monkeypatch.setattr(request_head, "read_head", fail)
            writer.write(SECOND + b"\r\n")
            await until(lambda: server.connection._reading_over, "the second is refused")
            app.go.set()
            assert statuses(await read_all(reader)) == [b"200", b"500"]

    run(scenario)


def test_a_client_that_waits_for_100_behind_another_request_has_its_full_time_limit_afterwards() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST + SECOND + b"content-length: 2\r\nexpect: 100-continue\r\n\r\n")
            await until(lambda: len(server.connection._pipeline._exchanges) == 2, "both are there")
            assert not server.connection._timed
            app.go.set()
            await reader.readuntil(b"HTTP/1.1 100 Continue")
            assert server.connection._timed
            writer.write(b"{}")
            await reader.readuntil(b"/second")

    run(scenario)


def test_a_refusal_is_counted(shared: Gateway) -> None:
    def refusals() -> float:
        sample = 'orderstream_http_requests_total{route="unreadable",status="431"} '
        lines = shared.client.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(sample)) for line in lines if line.startswith(sample))

    before = refusals()
    with shared.connect() as line:
        line.sendall(LATER["101 fields"][0])
        assert statuses(to_the_end(line)) == [b"431"]
    assert refusals() == before + 1


def test_a_drain_answers_all_requests_that_have_arrived() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST * 3)
            await until(lambda: len(server.connection._pipeline._exchanges) == 3, "all are there")
            server.connection.drain()
            app.go.set()
            received = await read_all(reader)
            assert statuses(received) == [b"200"] * 3
            assert received.count(b"connection: close") == 1
            assert received.rindex(b"HTTP/1.1") < received.index(b"connection: close")

    run(scenario)


def test_the_end_of_a_drain_answers_503_once() -> None:
    async def scenario() -> None:
        async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await respond(send, 503, b"")

        async with serving(stuck) as server:
            reader, writer = await server.open()
            writer.write(FIRST * 3)
            await until(lambda: len(server.connection._pipeline._exchanges) == 3, "all are there")
            server.connection.drain()
            server.connection.stop_work()
            received = await read_all(reader)
            assert statuses(received) == [b"503"]
            assert b"connection: close" in received

    run(scenario)


@pytest.mark.parametrize("rest", [b"xyz\r\n", b"1;" + b"x" * 70_000], ids=["400", "431"])
def test_a_response_of_the_application_is_not_replaced_by_a_refusal(rest: bytes) -> None:
    """Such as that of a cancel, whose body is of no interest: the order is cancelled, however the body goes on."""

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


def test_a_client_that_has_closed_its_side_still_gets_its_responses() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(FIRST * (QUEUED_REQUESTS_MAX + 3) + SECOND)
            writer.write_eof()
            await until(lambda: app.paths, "the first is worked on")
            app.go.set()
            assert statuses(await read_all(reader)) == [b"200"] * (QUEUED_REQUESTS_MAX + 3)
            await until(lambda: not server.state.connections, "the connection is forgotten")
            assert server.state.held_bytes == 0

    run(scenario)


def test_a_disconnect_ends_the_request_that_waits() -> None:
    async def scenario() -> None:
        ended: list[str] = []

        async def wait(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            ended.append("disconnected")

        async with serving(wait) as server:
            _, writer = await server.open()
            writer.write(FIRST)
            await until(lambda: server.state.tasks, "it is worked on")
            writer.close()
            await until(lambda: ended, "it has ended")
            await until(lambda: not server.state.connections, "the connection is forgotten")

    run(scenario)


def test_a_stored_order_is_not_answered_400(start: Start, postgres_url: str, connection: Connection) -> None:
    gateway = start()
    with psycopg.connect(postgres_url) as blocker, gateway.connect() as line:
        blocker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        line.sendall(POST + README + b"}")
        wait_until(lambda: _waiting(connection), 10, "the commit waits for the lock")
        blocker.rollback()
        assert statuses(to_the_end(line)) == [b"201", b"400"]
    row = connection.execute("SELECT count(*) FROM orders").fetchone()
    assert row == (1,)


def _waiting(connection: Connection) -> Any:
    row = connection.execute(WAITING.encode()).fetchone()
    return row and row[0]


EARLY = {
    "404": b"POST /nothing HTTP/1.1\r\nhost: x\r\n",
    "405": b"PUT /orders HTTP/1.1\r\nhost: x\r\n",
    "413": b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 3000000\r\n",
    "415": b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n",
    "400": b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nidempotency-key: \t\r\n",
}


@pytest.mark.parametrize("framing", [b"content-length: 64\r\n", b"transfer-encoding: chunked\r\n"], ids=["CL", "TE"])
@pytest.mark.parametrize(("status", "head"), EARLY.items(), ids=EARLY)
def test_an_early_response_to_a_client_that_waits_for_100_closes_the_connection(
    shared: Gateway, status: str, head: bytes, framing: bytes
) -> None:
    if status == "413":
        framing = b""
    with shared.connect() as line:
        line.sendall(head + framing + b"expect: 100-continue\r\n\r\n")
        received = one_answer(line)
        assert statuses(received) == [status.encode()]
        assert b"connection: close" in received
        with contextlib.suppress(ConnectionError):
            line.sendall(LIVE)
        assert to_the_end(line) == b""


def test_100_is_sent_once_and_only_to_a_client_that_waits_for_it(shared: Gateway) -> None:
    head = POST.replace(b"host: x", b"host: x\r\nexpect: 100-Continue")
    with shared.connect() as line:
        line.sendall(head + README)
        assert statuses(one_answer(line)) == [b"201"]
        line.sendall(head.replace(b"1.1", b"1.0"))
        line.sendall(README)
        assert statuses(to_the_end(line)) == [b"201"]


def test_an_unknown_expectation_is_refused(shared: Gateway) -> None:
    with shared.connect() as line:
        line.sendall(POST.replace(b"host: x", b"host: x\r\nexpect: 100-continue, luck"))
        assert statuses(to_the_end(line)) == [b"417"]
    with shared.connect() as line:
        line.sendall(LIVE.replace(b"1.1", b"1.0").replace(b"host", b"expect: luck\r\nhost"))
        assert statuses(to_the_end(line)) == [b"200"]


LARGE = b"content-length: 2097152\r\nconnection: close\r\n"
UNREAD = {
    "413": POST.replace(b"content-length: %d\r\n" % len(README), LARGE),
    "400": POST.replace(b"content-length: %d\r\n" % len(README), LARGE + b"host: y\r\n"),
    "404": b"POST /nothing HTTP/1.1\r\nhost: x\r\n" + LARGE + b"\r\n",
    "431": b"POST /orders HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 100 + LARGE + b"\r\n",
    "417": b"POST /orders HTTP/1.1\r\nhost: x\r\nexpect: luck\r\n" + LARGE + b"\r\n",
    "501": b"BREW /orders HTTP/1.1\r\nhost: x\r\n" + LARGE + b"\r\n",
}


@pytest.mark.parametrize(("status", "head"), UNREAD.items(), ids=UNREAD)
def test_a_client_that_sends_everything_before_it_reads_gets_the_response(
    shared: Gateway, status: str, head: bytes
) -> None:
    for _ in range(10):
        with shared.connect() as line:
            line.sendall(head)
            line.sendall(b"x" * 2_097_152)
            received = b""
            while piece := line.recv(65_536):
                received += piece
            assert statuses(received) == [status.encode()]
            assert b"connection: close" in received


def test_the_client_of_a_refused_connection_can_read_the_reason(start: Start) -> None:
    gateway = start(GATEWAY_CONNECTION_LIMIT="1")
    gateway.client.close()
    with gateway.connect() as first:
        first.sendall(LIVE)
        wait_until(lambda: _is_open(gateway, first), 10, "there is room for one")
        for _ in range(10):
            with gateway.connect() as line:
                line.sendall(POST.replace(b"content-length: %d\r\n" % len(README), LARGE) + b"x" * 2_097_152)
                received = b""
                while piece := line.recv(65_536):
                    received += piece
                assert statuses(received) == [b"503"]


def _is_open(gateway: Gateway, line: socket.socket) -> bool:
    return one_answer(line).startswith(b"HTTP/1.1 200")


def test_a_client_that_continues_to_send_can_read_the_timeout() -> None:
    async def scenario() -> None:
        async with serving(HeldApp(), request_timeout_seconds=0.1) as server:
            sock = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", server.port), 20)
            with sock:
                received = await asyncio.to_thread(_send_for_long, sock)
            assert statuses(received) == [b"408"]

    run(scenario)


def _send_for_long(line: socket.socket) -> bytes:
    """Send slowly until the other side has said all, and then 1 MiB more, before reading anything."""
    line.sendall(SECOND + b"content-length: 9999999\r\n\r\n")
    while not line.recv(1, socket.MSG_PEEK):
        pass
    line.sendall(b"x" * (1 << 20))
    return to_the_end(line)


UPGRADES = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\n",
    "websocket": b"connection: keep-alive, upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
    "two": b"Connection: UPGRADE\r\nUpgrade: foo/2\r\nupgrade: h2c\r\n",
}
FRAMED = {
    "length": POST + README,
    "chunked": CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(README), README),
    "pieces": CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in README) + b"0\r\nx: y\r\n\r\n",
}


@pytest.mark.parametrize("dripped", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("request_", FRAMED.values(), ids=FRAMED)
@pytest.mark.parametrize("offer", UPGRADES.values(), ids=UPGRADES)
def test_a_request_that_offers_an_upgrade_keeps_its_body(
    shared: Gateway, offer: bytes, request_: bytes, dripped: bool
) -> None:
    sent = request_.replace(b"host: x\r\n", b"host: x\r\n" + offer)
    with shared.connect() as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in [sent[at : at + 7] for at in range(0, len(sent), 7)] if dripped else [sent]:
            line.sendall(piece)
        received = one_answer(line)
        assert statuses(received) == [b"201"]
        assert b"connection: close" not in received
        line.sendall(LIVE.replace(b"host: x\r\n", b"host: x\r\n" + offer) + LIVE)
        received = b""
        while received.count(b'{"status":"ok"}') < 2:
            received += line.recv(65_536)


def test_bytes_behind_connect_are_not_served(shared: Gateway) -> None:
    with shared.connect() as line:
        line.sendall(b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc" + LIVE)
        assert statuses(to_the_end(line)) == [b"501"]


def test_a_large_last_response_arrives_complete() -> None:
    size = 16 << 20

    async def scenario() -> None:
        async def large(scope: Scope, receive: Receive, send: Send) -> None:
            await respond(send, 200, bytes(size))

        async with serving(large) as server:
            reader, writer = await server.open()
            writer.write(LIVE.replace(b"host", b"connection: close\r\nhost") + LIVE)
            await until(lambda: server.connection._client.write_paused, "the client takes nothing")
            received = await read_all(reader)
            assert received.endswith(bytes(size))

    run(scenario)


def test_many_concurrent_clients_read_their_refusals(shared: Gateway) -> None:
    found: list[bytes] = []

    def ask() -> None:
        with shared.connect() as line:
            line.sendall(UNREAD["413"] + b"x" * 2_097_152)
            found.append(to_the_end(line)[9:12])

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"413"] * 10
