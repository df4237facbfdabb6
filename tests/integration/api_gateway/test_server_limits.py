"""The limits that all connections of a server share: their number, their number per peer, and their memory."""

import asyncio
import contextlib
import socket
import tracemalloc

import psutil
import psycopg
import pytest
from starlette.types import Receive, Scope, Send

from orderstream.http_server import server_state
from orderstream.http_server.connection import Connection as ServedConnection
from orderstream.http_server.server_state import READ_MAX_BYTES, peer_of
from tests.integration.api_gateway.conftest import Start
from tests.integration.api_gateway.serving import HeldApp, read_all, respond, run, serving, until
from tests.integration.api_gateway.test_server import LIVE, POST, read_response, read_to_the_end
from tests.support.bodies import README
from tests.support.waiting import wait_until


def test_the_number_of_connections_is_limited(start: Start) -> None:
    gateway = start(GATEWAY_CONNECTION_LIMIT="3")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(gateway.connect()) for _ in range(2)]
        for sock in socks:
            sock.sendall(LIVE)
            assert read_response(sock).startswith(b"HTTP/1.1 200")
        refused = read_to_the_end(stack.enter_context(gateway.connect()))
        assert refused.startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"urn:orderstream:problem:unavailable" in refused
        assert b"retry-after: 1" in refused
        socks[0].sendall(LIVE)
        assert read_response(socks[0]).startswith(b"HTTP/1.1 200")
        socks[0].close()

        def is_served() -> bool:
            with gateway.connect() as sock:
                sock.sendall(LIVE)
                return b"HTTP/1.1 200" in sock.recv(65536)

        wait_until(is_served, 10, "there is room again")


def test_the_number_of_connections_from_one_peer_is_limited(start: Start) -> None:
    gateway = start(GATEWAY_CONNECTIONS_PER_PEER="2")
    gateway.client.close()
    with contextlib.ExitStack() as stack:

        def kept() -> bool:
            sock = stack.enter_context(gateway.connect())
            sock.sendall(LIVE)
            return read_response(sock).startswith(b"HTTP/1.1 200")

        wait_until(kept, 10, "the first connection")
        wait_until(kept, 10, "the second connection")
        refused = read_to_the_end(stack.enter_context(gateway.connect()))
        assert refused.startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"one address" in refused
        with contextlib.closing(socket.create_connection(("127.0.0.1", gateway.port), 20, ("127.0.0.2", 0))) as other:
            other.sendall(LIVE)
            assert read_response(other).startswith(b"HTTP/1.1 200")


def test_all_addresses_of_an_ipv6_network_are_one_peer() -> None:
    assert peer_of(("2001:db8::1", 1, 0, 0)) == peer_of(("2001:db8::ffff:1", 1, 0, 0))
    assert peer_of(("2001:db8::1", 1, 0, 0)) != peer_of(("2001:db8:0:1::1", 1, 0, 0))
    assert peer_of(("::ffff:10.0.0.1", 1, 0, 0)) == peer_of(("10.0.0.1", 1)) != peer_of(("10.0.0.2", 1))


def test_the_number_of_refused_connections_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_state, "REFUSED_CONNECTIONS_MAX", 2)

    async def scenario() -> None:
        async with serving(HeldApp(), connections=1) as server:
            await server.open()
            refused = [await server.open() for _ in range(2)]
            for reader, _ in refused:
                assert (await read_all(reader)).startswith(b"HTTP/1.1 503")
            cut, _ = await server.open()
            assert await read_all(cut) == b""
            assert len(server.state.connections) == 3

    run(scenario)


def test_a_peer_may_open_new_connections_after_its_old_ones_are_closed() -> None:
    async def scenario() -> None:
        app = HeldApp()
        app.go.set()
        async with serving(app, connections_per_peer=2) as server:
            for _ in range(3):
                opened = [await server.open() for _ in range(2)]
                for reader, writer in opened:
                    writer.write(LIVE)
                    assert (await reader.read(1 << 16)).startswith(b"HTTP/1.1 200")
                for _, writer in opened:
                    writer.transport.abort()
                await until(lambda: not server.state.connections, "both are closed")

    run(scenario)


def test_pipelined_requests_do_not_fill_the_memory(start: Start, postgres_url: str) -> None:
    gateway = start()
    process = psutil.Process(gateway.process.pid)
    with psycopg.connect(postgres_url) as blocker, gateway.connect() as sock:
        blocker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        before = process.memory_info().rss
        sock.settimeout(0.5)
        sock.sendall(POST + README)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += sock.send(LIVE * 4_096)
        assert sent < 64 << 20
        assert process.memory_info().rss - before < 16 << 20
        cpu = process.cpu_times()
    assert gateway.client.get("/livez").status_code == 200
    after = process.cpu_times()
    assert after.user + after.system - cpu.user - cpu.system < 1


@pytest.mark.parametrize("waits", [LIVE, b"GET / HTTP/1.1\r\nx: " + b"y" * 15_000], ids=["requests", "half a head"])
def test_the_memory_of_all_requests_together_is_limited(waits: bytes) -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app, requests_bytes=20_000 if waits == LIVE else 30_000) as server:
            held = [await server.open() for _ in range(10)]
            held[0][1].write(waits)
            for _, writer in held[1:]:
                writer.write(LIVE)
            await until(lambda: server.state.overfull, "the limit is exceeded")
            reader, writer = await server.open()
            writer.write(LIVE)
            refused = await read_all(reader)
            assert refused.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1\r\n" in refused
            app.go.set()
            for _, writer in held:
                writer.transport.abort()
            await until(lambda: server.state.held_bytes == 0, "there is room again")
            reader, writer = await server.open()
            writer.write(LIVE)
            assert (await reader.read(1 << 16)).startswith(b"HTTP/1.1 200")

    run(scenario)


@pytest.mark.parametrize("how", ["the client disconnects", "drain"])
def test_the_memory_of_dropped_requests_is_no_longer_counted(how: str) -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            _, writer = await server.open()
            writer.write(LIVE * 500)
            await until(lambda: server.connection._client.reading_paused, "reading is paused")
            unread = len(server.connection._unread)
            assert unread > 10_000
            before = server.state.held_bytes
            if how == "drain":
                server.connection.drain()
                assert server.state.held_bytes == before - unread
                app.go.set()
                await until(
                    lambda: not server.connection._pipeline._exchanges, "all requests that were read are answered"
                )
            else:
                writer.transport.abort()
                app.go.set()
                await until(lambda: not server.state.connections, "the connection is closed")
            assert server.state.held_bytes == 0

    run(scenario)


@pytest.mark.parametrize(
    ("sent", "received"),
    [(LIVE[:-2] + b"x: %b\r\n\r\n", b"HTTP/1.1 200"), (b"GET / HTTP/1.1\r\nx: %b\r\n\r\n", b"HTTP/1.1 400")],
    ids=["answered", "refused"],
)
def test_an_idle_connection_does_not_keep_the_head_of_its_last_request(sent: bytes, received: bytes) -> None:
    """Thousands of connections may be idle, and the memory that they hold then is not counted."""
    size, count = 60_000, 20

    async def scenario() -> None:
        app = HeldApp()
        app.go.set()
        async with serving(app) as server:
            opened = [await server.open() for _ in range(count)]
            tracemalloc.start()
            try:
                for reader, writer in opened:
                    writer.write(sent % (b"y" * size))
                    assert (await reader.read(1 << 16)).startswith(received)
                assert len(server.state.connections) == count
                await until(lambda: not server.state.tasks, "all are answered")
                assert tracemalloc.get_traced_memory()[0] < count * size // 4
            finally:
                tracemalloc.stop()

    run(scenario)


def test_the_bytes_of_a_response_that_the_client_does_not_read_are_counted() -> None:
    async def scenario() -> None:
        async def large(scope: Scope, receive: Receive, send: Send) -> None:
            await respond(send, 200, bytes(32 << 20))

        async with serving(large) as server:
            _, writer = await server.open()
            writer.write(LIVE * 3)
            await until(lambda: server.state.held_bytes > 8 << 20, "the unsent bytes are counted")
            assert server.connection._pipeline._exchanges[0].task is None

    run(scenario)


CHUNKED = b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
FLOODS = {
    "tiny chunks": CHUNKED + b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n",
    "empty lines in a chunk": CHUNKED + b"20000\r\n" + b"\r\n" * (1 << 16) + b"\r\n0\r\n\r\n",
    "pipelined": LIVE * 6_000,
    "discarded": b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n\r\n" + b"x" * 5_000_000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_other_connections_are_served_while_one_connection_floods_the_server(flood: bytes) -> None:
    """The server reads at most 32 KiB of one connection in one turn of the event loop."""

    async def scenario() -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            while scope["path"] != "/early" and (await receive()).get("more_body"):
                pass
            await respond(send, 200, b"")

        sizes: list[int] = []
        turn = 0
        turns: dict[int, int] = {}
        updated = ServedConnection.buffer_updated

        def record(connection: ServedConnection, nbytes: int) -> None:
            sizes.append(nbytes)
            turns[turn] = turns.get(turn, 0) + nbytes
            updated(connection, nbytes)

        async with serving(app) as server:
            loop = asyncio.get_running_loop()

            def count() -> None:
                nonlocal turn
                turn += 1
                loop.call_soon(count)

            count()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ServedConnection, "buffer_updated", record)
                reader, writer = await server.open()
                writer.write(flood)
                writer.write_eof()
                await read_all(reader)
        assert max(turns.values()) <= READ_MAX_BYTES
        assert sum(sizes) == len(flood)

    run(scenario)
