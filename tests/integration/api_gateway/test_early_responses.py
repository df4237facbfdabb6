"""Early responses: a client that still sends its request can read a refusal, and an offered upgrade is ignored."""

import asyncio
import contextlib
import socket
import threading

import pytest
from starlette.types import Receive, Scope, Send

from tests.integration.api_gateway.conftest import Gateway, Start
from tests.integration.api_gateway.serving import HeldApp, read_all, respond, run, serving, until
from tests.integration.api_gateway.test_pipeline import SECOND, statuses
from tests.integration.api_gateway.test_server import CHUNKED, LIVE, POST, read_response, read_to_the_end
from tests.support.bodies import README
from tests.support.waiting import wait_until

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
    with shared.connect() as sock:
        sock.sendall(head + framing + b"expect: 100-continue\r\n\r\n")
        received = read_response(sock)
        assert statuses(received) == [status.encode()]
        assert b"connection: close" in received
        with contextlib.suppress(ConnectionError):
            sock.sendall(LIVE)
        assert read_to_the_end(sock) == b""


def test_100_continue_is_sent_once_and_only_to_a_client_that_waits_for_it(shared: Gateway) -> None:
    head = POST.replace(b"host: x", b"host: x\r\nexpect: 100-Continue")
    with shared.connect() as sock:
        sock.sendall(head + README)
        assert statuses(read_response(sock)) == [b"201"]
        sock.sendall(head.replace(b"1.1", b"1.0"))
        sock.sendall(README)
        assert statuses(read_to_the_end(sock)) == [b"201"]


def test_an_unknown_value_of_expect_is_refused(shared: Gateway) -> None:
    with shared.connect() as sock:
        sock.sendall(POST.replace(b"host: x", b"host: x\r\nexpect: 100-continue, luck"))
        assert statuses(read_to_the_end(sock)) == [b"417"]
    with shared.connect() as sock:
        sock.sendall(LIVE.replace(b"1.1", b"1.0").replace(b"host", b"expect: luck\r\nhost"))
        assert statuses(read_to_the_end(sock)) == [b"200"]


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
        with shared.connect() as sock:
            sock.sendall(head)
            sock.sendall(b"x" * 2_097_152)
            received = b""
            while piece := sock.recv(65_536):
                received += piece
            assert statuses(received) == [status.encode()]
            assert b"connection: close" in received


def test_the_client_of_a_refused_connection_can_read_the_reason(start: Start) -> None:
    gateway = start(GATEWAY_CONNECTION_LIMIT="1")
    gateway.client.close()
    with contextlib.ExitStack() as stack:
        wait_until(lambda: _is_served(stack.enter_context(gateway.connect())), 10, "the first connection is accepted")
        for _ in range(10):
            with gateway.connect() as sock:
                sock.sendall(POST.replace(b"content-length: %d\r\n" % len(README), LARGE) + b"x" * 2_097_152)
                received = b""
                while piece := sock.recv(65_536):
                    received += piece
                assert statuses(received) == [b"503"]


def _is_served(sock: socket.socket) -> bool:
    """Return whether a new connection is served. Until the gateway has noticed that another is closed, it is not."""
    sock.sendall(LIVE)
    return read_response(sock).startswith(b"HTTP/1.1 200")


def test_a_client_that_still_sends_can_read_the_timeout_response() -> None:
    async def scenario() -> None:
        async with serving(HeldApp(), request_timeout_seconds=0.5) as server:
            sock = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", server.port), 20)
            with sock:
                received = await asyncio.to_thread(_send_for_long, sock)
            assert statuses(received) == [b"408"]

    run(scenario)


def _send_for_long(sock: socket.socket) -> bytes:
    """Wait until the server has responded, then send 1 MiB more, and only then read."""
    sock.sendall(SECOND + b"content-length: 9999999\r\n\r\n")
    while not sock.recv(1, socket.MSG_PEEK):
        pass
    sock.sendall(b"x" * (1 << 20))
    return read_to_the_end(sock)


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
    with shared.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in [sent[at : at + 7] for at in range(0, len(sent), 7)] if dripped else [sent]:
            sock.sendall(piece)
        received = read_response(sock)
        assert statuses(received) == [b"201"]
        assert b"connection: close" not in received
        sock.sendall(LIVE.replace(b"host: x\r\n", b"host: x\r\n" + offer) + LIVE)
        received = b""
        while received.count(b'{"status":"ok"}') < 2:
            received += sock.recv(65_536)


def test_a_request_after_connect_is_not_served(shared: Gateway) -> None:
    with shared.connect() as sock:
        sock.sendall(b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc" + LIVE)
        assert statuses(read_to_the_end(sock)) == [b"501"]


def test_a_large_last_response_arrives_complete() -> None:
    size = 16 << 20

    async def scenario() -> None:
        async def large(scope: Scope, receive: Receive, send: Send) -> None:
            await respond(send, 200, bytes(size))

        async with serving(large) as server:
            reader, writer = await server.open()
            writer.write(LIVE.replace(b"host", b"connection: close\r\nhost") + LIVE)
            await until(lambda: server.connection._client.write_paused, "the client does not read")
            received = await read_all(reader)
            assert received.endswith(bytes(size))

    run(scenario)


def test_many_concurrent_clients_read_their_refusals(shared: Gateway) -> None:
    found: list[bytes] = []

    def send_and_read() -> None:
        with shared.connect() as sock:
            sock.sendall(UNREAD["413"] + b"x" * 2_097_152)
            found.append(read_to_the_end(sock)[9:12])

    threads = [threading.Thread(target=send_and_read) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"413"] * 10
