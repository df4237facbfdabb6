"""Backpressure: no new order is accepted while the outbox is full."""

import asyncio
from typing import Any

import pytest

from orderstream.api_gateway.batcher import TryAgainError
from orderstream.api_gateway.orders import backpressure
from orderstream.api_gateway.orders.backpressure import MEASURE_SECONDS, STALE_SECONDS, OutboxLimit
from orderstream.api_gateway.session import Session
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Gateway, Start
from tests.integration.api_gateway.test_post import JSON, problem
from tests.support.bodies import README
from tests.support.waiting import wait_until


def post(gateway: Gateway) -> Any:
    return gateway.client.post("/orders", content=README, headers=JSON)


def test_no_new_order_is_accepted_while_the_outbox_is_full(
    start: Start, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start(OUTBOX_LIMIT="3")
    paths = [post(gateway).headers["location"] for _ in range(4)]
    refused = wait_until(lambda: (response := post(gateway)).status_code == 503 and response, 10, "an order is refused")
    problem(refused, "outbox-full")
    assert int(refused.headers["retry-after"]) >= 1
    assert gateway.client.post(f"{paths[0]}/cancel").status_code == 202
    assert gateway.client.get("/readyz").status_code == 200
    connection.execute("DELETE FROM outbox")
    wait_until(lambda: post(gateway).status_code == 201, 10, "an order is accepted again")
    assert gateway.log.count('"outbox_full"') == gateway.log.count('"outbox_has_room"') == 1


class CountingSession(Session):
    """Counts its statements. They fail while `fail` is set."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "test")
        self.count = 0
        self.fail = False

    async def check(self, statement: Any, parameters: Any, row_factory: Any) -> list[Any]:
        self.count += 1
        if self.fail:
            raise TryAgainError
        return await super().check(statement, parameters, row_factory)


def test_the_outbox_is_measured_once_a_second_and_the_result_is_valid_for_five_seconds(
    postgres_url: str, connection: Connection
) -> None:
    now = 100.0

    async def scenario() -> None:
        nonlocal now
        async with CountingSession(postgres_url) as session, OutboxLimit(session, 2, lambda: now) as outbox:

            async def measure() -> bool:
                exceeded = outbox.is_exceeded()
                assert outbox._task is not None
                await outbox._task
                return exceeded

            connection.execute(
                "INSERT INTO outbox (topic, order_id, event_id, value)"
                " SELECT 't', 'x', gen_random_uuid(), '' FROM generate_series(1, 3)"
            )
            assert [await measure() for _ in range(3)] == [False, True, True]
            assert session.count == 1
            session.fail = True
            now += MEASURE_SECONDS
            assert await measure()
            assert session.count == 2
            now += STALE_SECONDS
            assert not await measure()
            session.fail = False
            now += MEASURE_SECONDS
            assert [await measure() for _ in range(2)] == [False, True]
            connection.execute("DELETE FROM outbox WHERE id = (SELECT min(id) FROM outbox)")
            now += MEASURE_SECONDS
            assert [await measure() for _ in range(2)] == [True, False]
            assert session.count == 5

    asyncio.run(scenario())


def test_a_hanging_measurement_of_the_outbox_blocks_no_order(postgres_url: str, connection: Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")

    async def scenario() -> None:
        now = 0.0
        async with Session(postgres_url, "test") as session, OutboxLimit(session, 1, lambda: now) as outbox:
            for _ in range(5):
                assert not outbox.is_exceeded()
                assert outbox._task is not None
                await asyncio.wait([outbox._task], timeout=0.01)
                now += backpressure.MEASURE_SECONDS

    asyncio.run(scenario())
