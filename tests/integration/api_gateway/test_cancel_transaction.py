"""A cancel is one transaction: the order, its update and its abort commit together (P5, P6)."""

import asyncio

import psycopg
import pytest

from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.application import application
from tests.integration.decisions.orders import place, row
from tests.support.asgi import Answer, call


def _cancel(url: str, redis_url: str, order_id: str) -> Answer:
    async def scenario() -> Answer:
        async with application(url, redis_url) as api:
            return await call(api, "POST", f"/orders/{order_id}/cancel")

    return asyncio.run(scenario())


def test_an_order_whose_events_cannot_be_queued_is_not_cancelled(
    connection: Connection, postgres_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = place(connection)
    connection.execute("ALTER TABLE outbox ADD CONSTRAINT refuses CHECK (FALSE)")
    with monkeypatch.context() as patch:
        patch.setattr("orderstream.api_gateway.routes.BUDGET_SECONDS", 0.3)
        assert _cancel(postgres_url, redis_url, order_id).status >= 500
    assert row(connection, "SELECT status, version, aborted_at FROM orders") == ("PROCESSING", 1, None)
    connection.execute("ALTER TABLE outbox DROP CONSTRAINT refuses")
    assert _cancel(postgres_url, redis_url, order_id).status == 202
    topics = [name for (name,) in connection.execute("SELECT topic FROM outbox ORDER BY id")]
    assert topics == ["order.updated.v1", "order.aborted.v1"]


def test_a_cancel_wakes_the_relay(connection: Connection, postgres_url: str, redis_url: str) -> None:
    order_id = place(connection)
    with psycopg.connect(postgres_url, autocommit=True) as relay:
        relay.execute("LISTEN orderstream_outbox")
        assert _cancel(postgres_url, redis_url, order_id).status == 202
        assert len(list(relay.notifies(timeout=10, stop_after=1))) == 1
