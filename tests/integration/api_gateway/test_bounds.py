"""What is beyond a bound is refused at once and in words, and taken again as soon as there is room."""

import asyncio
import contextlib
from typing import Any

import pytest
from psycopg.rows import TupleRow

from orderstream.api_gateway import outbox_bound
from orderstream.api_gateway.bodies import Bodies
from orderstream.api_gateway.endpoint import Request
from orderstream.api_gateway.gathering import TryAgainError
from orderstream.api_gateway.outbox_bound import MEASURE_SECONDS, STALE_SECONDS, OutboxBound
from orderstream.api_gateway.problems import Problem
from orderstream.api_gateway.session import Session
from orderstream.api_gateway.writer import WAITING_LINES_MAX
from orderstream.postgres.connect import Connection
from orderstream.telemetry.tracing import Tracer
from tests.asgi import call
from tests.bodies import README, many, order
from tests.integration.api_gateway.application import application
from tests.integration.api_gateway.conftest import Gateway, Start
from tests.integration.api_gateway.test_post import JSON, problem
from tests.integration.api_gateway.test_server import LIVE, answer, to_the_end
from tests.waiting import wait_until


def post(gateway: Gateway) -> Any:
    return gateway.client.post("/orders", content=README, headers=JSON)


def test_while_the_outbox_is_full_no_order_is_taken(
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

    async def check(self, statement: Any, parameters: Any) -> list[TupleRow]:
        self.count += 1
        if self.fail:
            raise TryAgainError
        return await super().check(statement, parameters)


def test_it_is_measured_now_and_then_and_believed_for_a_while(postgres_url: str, connection: Connection) -> None:
    now = 100.0

    async def scenario() -> None:
        nonlocal now
        async with CountedSession(postgres_url) as session, OutboxBound(session, 2, lambda: now) as bound:

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


def test_a_measurement_that_hangs_stops_nobody(postgres_url: str, connection: Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")

    async def scenario() -> None:
        now = 0.0
        async with Session(postgres_url, "test") as session, OutboxBound(session, 1, lambda: now) as bound:
            for _ in range(5):
                assert not bound.is_exceeded()
                assert bound._task is not None
                await asyncio.wait([bound._task], timeout=0.01)
                now += outbox_bound.MEASURE_SECONDS

    asyncio.run(scenario())


def test_what_waits_for_a_commit_is_bounded_by_its_lines_too(
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


def test_what_is_arriving_is_bounded_in_bytes() -> None:
    async def scenario() -> None:
        bodies = Bodies(limit_bytes=25)
        go = asyncio.Event()

        def request(*pieces: bytes) -> Request:
            messages = [{"body": piece, "more_body": True} for piece in pieces] + [{"body": b"", "more_body": False}]

            async def receive() -> Any:
                if len(messages) == 1:
                    await go.wait()
                return {"type": "http.request", **messages.pop(0)}

            return Request(
                {b"content-type": b"application/json"}, {}, receive, Tracer(None, 0).server("x", (None, None))
            )

        held = asyncio.create_task(bodies.read(request(b"x" * 10, b"y" * 10)))
        await asyncio.wait([held], timeout=0.05)
        with pytest.raises(Problem, match="503 unavailable"):
            await bodies.read(request(b"z" * 10))
        go.set()
        assert await held == b"x" * 10 + b"y" * 10
        assert await bodies.read(request(b"z" * 25)) == b"z" * 25
        assert bodies._held_bytes == 0

    asyncio.run(scenario())


def test_connections_are_bounded(start: Start) -> None:
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

        def served() -> bool:
            with gateway.connect() as line:
                line.sendall(LIVE)
                return b"HTTP/1.1 200" in line.recv(65536)

        wait_until(served, 10, "there is room again")
