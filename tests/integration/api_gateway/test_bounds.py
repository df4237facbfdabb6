"""What is beyond a bound is refused at once and in words, and taken again as soon as there is room."""

import asyncio
import contextlib
import socket
import tracemalloc
from typing import Any

import psutil
import psycopg
import pytest
from starlette.types import Receive, Scope, Send

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.api_gateway.http import connection as connection_module
from orderstream.api_gateway.http import server_state
from orderstream.api_gateway.http.connection import BODY_BUFFER_MAX_BYTES, QUEUED_REQUESTS_MAX
from orderstream.api_gateway.http.connection import Connection as ServedConnection
from orderstream.api_gateway.http.endpoint import Request
from orderstream.api_gateway.http.problems import Problem
from orderstream.api_gateway.http.request_body import BodyReader
from orderstream.api_gateway.http.request_head import HEAD_MAX_BYTES, TARGET_MAX_BYTES
from orderstream.api_gateway.http.server_state import READ_MAX_BYTES, peer_of
from orderstream.api_gateway.orders import backpressure as outbox_bound
from orderstream.api_gateway.orders.backpressure import MEASURE_SECONDS, STALE_SECONDS, OutboxLimit
from orderstream.api_gateway.orders.writer import WAITING_LINES_MAX
from orderstream.api_gateway.session import Session
from orderstream.postgres.connect import Connection
from orderstream.telemetry.tracing import NO_TRACE, Tracer
from tests.integration.api_gateway.application import application
from tests.integration.api_gateway.conftest import Gateway, Start
from tests.integration.api_gateway.serving import HeldApp, read_all, respond, run, serving, until
from tests.integration.api_gateway.test_post import JSON, problem
from tests.integration.api_gateway.test_server import LIVE, POST, answer, to_the_end
from tests.support.asgi import call
from tests.support.bodies import README, many, order
from tests.support.waiting import wait_until


def post(gateway: Gateway) -> Any:
    return gateway.client.post("/orders", content=README, headers=JSON)


def test_no_new_order_is_accepted_while_the_outbox_is_full(
    start: Start, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start(OUTBOX_LIMIT="3")
    paths = [post(gateway).headers["location"] for _ in range(4)]
    refused = wait_until(lambda: (one := post(gateway)).status_code == 503 and one, 10, "an order is refused")
    problem(refused, "outbox-full")
    assert int(refused.headers["retry-after"]) >= 1
    assert gateway.client.post(f"{paths[0]}/cancel").status_code == 202
    assert gateway.client.get("/readyz").status_code == 200
    connection.execute("DELETE FROM outbox")
    wait_until(lambda: post(gateway).status_code == 201, 10, "an order is taken again")
    assert gateway.log.count('"outbox_full"') == gateway.log.count('"outbox_has_room"') == 1


class CountedSession(Session):
    """Counts its statements; fails when told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "test")
        self.count = 0
        self.fail = False

    async def check(self, statement: Any, parameters: Any, row_factory: Any) -> list[Any]:
        self.count += 1
        if self.fail:
            raise TryAgainError
        return await super().check(statement, parameters, row_factory)


def test_the_outbox_is_measured_once_a_second_and_the_result_counts_for_five(
    postgres_url: str, connection: Connection
) -> None:
    now = 100.0

    async def scenario() -> None:
        nonlocal now
        async with CountedSession(postgres_url) as session, OutboxLimit(session, 2, lambda: now) as bound:

            async def ask() -> bool:
                exceeded = bound.is_exceeded()
                assert bound._task is not None
                await bound._task
                return exceeded

            connection.execute(
                "INSERT INTO outbox (topic, order_id, event_id, value)"
                " SELECT 't', 'x', gen_random_uuid(), '' FROM generate_series(1, 3)"
            )
            assert [await ask() for _ in range(3)] == [False, True, True]
            assert session.count == 1
            session.fail = True
            now += MEASURE_SECONDS
            assert await ask()
            assert session.count == 2
            now += STALE_SECONDS
            assert not await ask()
            session.fail = False
            now += MEASURE_SECONDS
            assert [await ask() for _ in range(2)] == [False, True]
            connection.execute("DELETE FROM outbox WHERE id = (SELECT min(id) FROM outbox)")
            now += MEASURE_SECONDS
            assert [await ask() for _ in range(2)] == [True, False]
            assert session.count == 5

    asyncio.run(scenario())


def test_a_hanging_measurement_blocks_no_order(postgres_url: str, connection: Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")

    async def scenario() -> None:
        now = 0.0
        async with Session(postgres_url, "test") as session, OutboxLimit(session, 1, lambda: now) as bound:
            for _ in range(5):
                assert not bound.is_exceeded()
                assert bound._task is not None
                await asyncio.wait([bound._task], timeout=0.01)
                now += outbox_bound.MEASURE_SECONDS

    asyncio.run(scenario())


def test_the_lines_of_the_orders_that_wait_for_a_commit_are_limited(
    postgres_url: str, redis_url: str, connection: Connection
) -> None:
    body = order(items=many(1_000))
    count = WAITING_LINES_MAX // 1_000 + 5

    async def scenario() -> list[int]:
        async with application(postgres_url, redis_url, waiting_limit=1_000) as api:
            replies = await asyncio.gather(*(call(api, "POST", "/orders", [body], JSON) for _ in range(count)))
        return [reply.status for reply in replies]

    statuses = asyncio.run(scenario())
    assert statuses.count(503) == 5
    assert statuses.count(201) == count - 5


def test_the_total_size_of_arriving_bodies_is_limited() -> None:
    async def scenario() -> None:
        bodies = BodyReader(limit_bytes=25)
        go = asyncio.Event()

        def request(*pieces: bytes) -> Request:
            messages = [{"body": piece, "more_body": True} for piece in pieces] + [{"body": b"", "more_body": False}]

            async def receive() -> Any:
                if len(messages) == 1:
                    await go.wait()
                return {"type": "http.request", **messages.pop(0)}

            return Request({b"content-type": b"application/json"}, {}, receive, Tracer(None, 0).server("x", NO_TRACE))

        held = asyncio.create_task(bodies.read(request(b"x" * 10, b"y" * 10)))
        await asyncio.wait([held], timeout=0.05)
        with pytest.raises(Problem, match="503 unavailable"):
            await bodies.read(request(b"z" * 10))
        go.set()
        assert await held == b"x" * 10 + b"y" * 10
        assert await bodies.read(request(b"z" * 25)) == b"z" * 25
        assert bodies._held_bytes == 0

    asyncio.run(scenario())


def test_a_body_in_small_pieces_needs_no_more_memory_than_a_body_in_one_piece() -> None:
    """A list of pieces of two bytes takes twenty times their size."""
    size = 100_000
    sent = 0

    async def receive() -> Any:
        nonlocal sent
        sent += 1
        return {"type": "http.request", "body": sent.to_bytes(2, "big"), "more_body": sent < size // 2}

    async def scenario() -> None:
        request = Request({b"content-type": b"application/json"}, {}, receive, Tracer(None, 0).server("x", NO_TRACE))
        tracemalloc.start()
        try:
            body = await BodyReader().read(request)
            assert len(body) == size
            assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
        finally:
            tracemalloc.stop()

    asyncio.run(scenario())


def test_the_number_of_connections_is_limited(start: Start) -> None:
    gateway = start(GATEWAY_CONNECTION_LIMIT="3")
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(gateway.connect()) for _ in range(2)]
        for line in lines:
            line.sendall(LIVE)
            assert answer(line).startswith(b"HTTP/1.1 200")
        refused = to_the_end(stack.enter_context(gateway.connect()))
        assert refused.startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"urn:orderstream:problem:unavailable" in refused
        assert b"retry-after: 1" in refused
        lines[0].sendall(LIVE)
        assert answer(lines[0]).startswith(b"HTTP/1.1 200")
        lines[0].close()

        def is_served() -> bool:
            with gateway.connect() as line:
                line.sendall(LIVE)
                return b"HTTP/1.1 200" in line.recv(65536)

        wait_until(is_served, 10, "there is room again")


def test_the_number_of_connections_from_one_peer_is_limited(start: Start) -> None:
    gateway = start(GATEWAY_CONNECTIONS_PER_PEER="2")
    gateway.client.close()
    with contextlib.ExitStack() as stack:

        def kept() -> bool:
            line = stack.enter_context(gateway.connect())
            line.sendall(LIVE)
            return answer(line).startswith(b"HTTP/1.1 200")

        wait_until(kept, 10, "the first connection")
        wait_until(kept, 10, "the second connection")
        refused = to_the_end(stack.enter_context(gateway.connect()))
        assert refused.startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"one address" in refused
        with contextlib.closing(socket.create_connection(("127.0.0.1", gateway.port), 20, ("127.0.0.2", 0))) as other:
            other.sendall(LIVE)
            assert answer(other).startswith(b"HTTP/1.1 200")


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


def test_a_connection_queues_sixteen_requests() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            reader, writer = await server.open()
            writer.write(LIVE * 1_000)
            await until(lambda: len(server.connection._pipeline._exchanges) == QUEUED_REQUESTS_MAX, "the queue is full")
            await until(lambda: server.connection._client.reading_paused, "nothing more is read")
            assert len(server.state.tasks) == 1
            assert len(server.connection._pipeline._exchanges) == QUEUED_REQUESTS_MAX
            app.go.set()
            received = b""
            while received.count(b"HTTP/1.1 200") < 1_000:
                received += await reader.read(1 << 20)
            assert server.state.held_bytes == 0

    run(scenario)


@pytest.mark.parametrize("how", ["the client is gone", "drain"])
def test_dropped_unread_requests_are_no_longer_counted(how: str) -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            _, writer = await server.open()
            writer.write(LIVE * 500)
            await until(lambda: server.connection._client.reading_paused, "nothing more is read")
            unread = len(server.connection._unread)
            assert unread > 10_000
            before = server.state.held_bytes
            if how == "drain":
                server.connection.drain()
                assert server.state.held_bytes == before - unread
                app.go.set()
                await until(lambda: not server.connection._pipeline._exchanges, "all that was read is answered")
            else:
                writer.transport.abort()
                app.go.set()
                await until(lambda: not server.state.connections, "the connection is forgotten")
            assert server.state.held_bytes == 0

    run(scenario)


def test_pipelined_requests_do_not_fill_the_memory(start: Start, postgres_url: str) -> None:
    gateway = start()
    process = psutil.Process(gateway.process.pid)
    with psycopg.connect(postgres_url) as blocker, gateway.connect() as line:
        blocker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        before = process.memory_info().rss
        line.settimeout(0.5)
        line.sendall(POST + README)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += line.send(LIVE * 4_096)
        assert sent < 64 << 20
        assert process.memory_info().rss - before < 16 << 20
        cpu = process.cpu_times()
    assert gateway.client.get("/livez").status_code == 200
    after = process.cpu_times()
    assert after.user + after.system - cpu.user - cpu.system < 1


def test_a_body_behind_another_request_is_not_read_beyond_its_buffer() -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app) as server:
            _, writer = await server.open()
            writer.write(LIVE + b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000)
            await until(lambda: server.connection._client.reading_paused, "nothing more is read")
            waiting = server.connection._pipeline._exchanges[1]
            assert len(waiting.body) < BODY_BUFFER_MAX_BYTES + READ_MAX_BYTES
            app.go.set()
            await until(lambda: app.paths == ["/livez", "/x"] and not server.state.tasks, "both are answered")

    run(scenario)


@pytest.mark.parametrize("waits", [LIVE, b"GET / HTTP/1.1\r\nx: " + b"y" * 15_000], ids=["requests", "half a head"])
def test_the_memory_of_all_requests_together_is_limited(waits: bytes) -> None:
    async def scenario() -> None:
        app = HeldApp()
        async with serving(app, requests_bytes=20_000 if waits == LIVE else 30_000) as server:
            held = [await server.open() for _ in range(10)]
            held[0][1].write(waits)
            for _, writer in held[1:]:
                writer.write(LIVE)
            await until(lambda: server.state.overfull, "the room is full")
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


@pytest.mark.parametrize(
    ("sent", "received"),
    [(LIVE[:-2] + b"x: %b\r\n\r\n", b"HTTP/1.1 200"), (b"GET / HTTP/1.1\r\nx: %b\r\n\r\n", b"HTTP/1.1 400")],
    ids=["answered", "refused"],
)
def test_an_idle_connection_does_not_keep_the_last_head(sent: bytes, received: bytes) -> None:
    """Thousands of connections may rest, and none of what they hold then is counted."""
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
            await until(lambda: server.state.held_bytes > 8 << 20, "it is counted")
            assert server.connection._pipeline._exchanges[0].task is None

    run(scenario)


@pytest.mark.parametrize("number", [99, 100])
def test_a_request_may_have_a_hundred_fields_and_no_more(shared: Gateway, number: int) -> None:
    with shared.connect() as line:
        line.sendall(LIVE[:-2] + b"x: y\r\n" * number + b"\r\n")
        assert answer(line).startswith(b"HTTP/1.1 200" if number == 99 else b"HTTP/1.1 431")


def test_a_head_may_have_64_kib_and_no_more(shared: Gateway) -> None:
    for more, status in ((0, b"200"), (1, b"431")):
        with shared.connect() as line:
            line.sendall(LIVE[:-2] + b"x: " + b"y" * (HEAD_MAX_BYTES - len(LIVE) - 5 + more) + b"\r\n\r\n")
            assert answer(line).startswith(b"HTTP/1.1 " + status)


def test_a_target_beyond_8_kib_is_refused(shared: Gateway) -> None:
    for length, status in ((TARGET_MAX_BYTES, b"404"), (TARGET_MAX_BYTES + 1, b"414")):
        with shared.connect() as line:
            line.sendall(LIVE.replace(b"/livez", b"/" * length))
            assert answer(line).startswith(b"HTTP/1.1 " + status)


CHUNKED = b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
FLOODS = {
    "tiny chunks": CHUNKED + b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n",
    "empty lines in a chunk": CHUNKED + b"20000\r\n" + b"\r\n" * (1 << 16) + b"\r\n0\r\n\r\n",
    "pipelined": LIVE * 6_000,
    "discarded": b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n\r\n" + b"x" * 5_000_000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_connection_that_floods_the_server_gives_others_their_turn(flood: bytes) -> None:
    """The loop turns at least once for each 32 KiB: how much of it comes in one turn is what is bounded."""

    async def scenario() -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            while scope["path"] != "/early" and (await receive()).get("more_body"):
                pass
            await respond(send, 200, b"")

        sizes: list[int] = []
        turn = 0
        turns: dict[int, int] = {}
        updated = ServedConnection.buffer_updated

        def note(connection: ServedConnection, nbytes: int) -> None:
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
                patch.setattr(ServedConnection, "buffer_updated", note)
                reader, writer = await server.open()
                writer.write(flood)
                writer.write_eof()
                await read_all(reader)
        assert max(turns.values()) <= READ_MAX_BYTES
        assert sum(sizes) == len(flood)

    run(scenario)


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
                await until(lambda: not server.state.connections, "both are forgotten")

    run(scenario)


def test_a_request_is_not_started_while_the_client_does_not_read_the_response_before_it() -> None:
    async def scenario() -> None:
        async def large(scope: Scope, receive: Receive, send: Send) -> None:
            await respond(send, 200, bytes(32 << 20))

        async with serving(large) as server:
            _, writer = await server.open()
            writer.write(LIVE)
            await until(lambda: server.connection._client.write_paused, "the answer is not taken")
            writer.write(LIVE)
            await until(lambda: server.connection._pipeline._exchanges, "the second is there")
            assert server.connection._pipeline._exchanges[0].task is None

    run(scenario)


def test_a_client_that_does_not_read_the_response_to_its_only_request_is_disconnected() -> None:
    async def scenario() -> None:
        async def large(scope: Scope, receive: Receive, send: Send) -> None:
            await respond(send, 200, bytes(32 << 20))

        async with serving(large, request_timeout_seconds=0.1) as server:
            _, writer = await server.open()
            writer.write(LIVE)
            await until(lambda: server.state.held_bytes > 8 << 20, "the answer is not taken")
            await until(lambda: not server.state.connections, "the connection is cut")

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
            await until(lambda: not server.state.connections, "the connection is forgotten")

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
            await until(lambda: server.connection._client.write_paused, "the answer is not taken")
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
                pytest.fail("all of it was taken")
            await until(lambda: not server.state.connections, "the connection is closed")

    run(scenario)
