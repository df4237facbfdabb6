"""Postgres sets the times of an order, even if the clock of a gateway is wrong."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from orderstream.api_gateway.orders import writer
from orderstream.order_service.watchdog import Watchdog, WatchdogSchedule
from orderstream.payment_worker import handler as payment_handler
from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.application import application
from tests.support.asgi import Answer, call
from tests.support.bodies import order
from tests.support.servers import Servers

JSON = {"content-type": "application/json"}
UNDATED = '"occurredAt":"1970-01-01T00:00:00Z"'
WRONG_CLOCKS = {
    "13 h behind": timedelta(hours=-13),
    "13 h ahead": timedelta(hours=13),
    "10 years behind": timedelta(days=-3_653),
    "10 years ahead": timedelta(days=3_653),
}


def post(postgres_url: str, servers: Servers, shift: timedelta, body: bytes) -> Answer:
    """Place an order at a gateway whose clock is `shift` ahead."""

    async def scenario() -> Answer:
        clock = lambda: time.time() + shift.total_seconds()  # noqa: E731
        async with application(postgres_url, servers.redis_url, clock=clock) as api:
            return await call(api, "POST", "/orders", [body], JSON)

    return asyncio.run(scenario())


def event(connection: Connection) -> Any:
    """Remove the only event from the outbox and return it."""
    ((value,),) = connection.execute("DELETE FROM outbox RETURNING value").fetchall()
    return json.loads(value)


@pytest.mark.parametrize("shift", WRONG_CLOCKS.values(), ids=WRONG_CLOCKS)
def test_the_times_of_an_order_do_not_depend_on_the_clock_of_the_gateway(
    postgres_url: str, connection: Connection, servers: Servers, shift: timedelta
) -> None:
    before = connection.execute("SELECT clock_timestamp()").fetchall()[0][0]
    answer = post(postgres_url, servers, shift, order(user=json.dumps(UNDATED)))
    assert answer.status == 201
    order_id = json.loads(answer.body)["orderId"]
    ((created_at, updated_at, user_id, now),) = connection.execute(
        "SELECT created_at, updated_at, user_id, clock_timestamp() FROM orders"
    ).fetchall()
    assert before <= created_at <= now
    assert updated_at == created_at
    assert user_id == UNDATED
    in_id = datetime.fromtimestamp((UUID(order_id).int >> 80) / 1000, UTC)
    assert abs(in_id - created_at - shift) < timedelta(minutes=5), "the clock was not wrong"

    accepted = event(connection)
    assert accepted["occurredAt"] == created_at.isoformat().replace("+00:00", "Z")
    assert accepted["payload"]["userId"] == UNDATED
    connection.execute("UPDATE orders SET next_check_at = now()")
    Watchdog(WatchdogSchedule()).nudge(connection)
    assert event(connection) == accepted

    old_after = {"ids": [order_id], "oldest_seconds": 12 * 3_600}
    ((*_, too_old, _has_payment),) = connection.execute(payment_handler.SQL["accepted"], old_after).fetchall()
    assert not too_old


def test_the_gateway_writes_times_in_the_same_format_as_the_other_services(
    postgres_url: str, connection: Connection, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nudge repeats the event byte by byte, also if its time has no fraction of a second."""
    statement = writer.SQL["accept_orders"].replace("now()", "timestamptz '2026-01-02 03:04:05Z'")
    monkeypatch.setitem(writer.SQL, "accept_orders", statement)
    assert post(postgres_url, servers, timedelta(), order()).status == 201
    connection.execute("UPDATE orders SET next_check_at = now()")
    ((first,),) = connection.execute("DELETE FROM outbox RETURNING value").fetchall()
    Watchdog(WatchdogSchedule()).nudge(connection)
    ((again,),) = connection.execute("DELETE FROM outbox RETURNING value").fetchall()
    assert '"occurredAt":"2026-01-02T03:04:05Z"' in first
    assert again == first


def test_an_order_is_never_updated_before_the_time_of_its_creation(
    postgres_url: str, connection: Connection, servers: Servers
) -> None:
    """The clock of the database is set back by an hour, or a server with a slower clock takes over."""

    async def scenario() -> Answer:
        async with application(postgres_url, servers.redis_url) as api:
            placed = await call(api, "POST", "/orders", [order()], JSON)
            connection.execute(
                "UPDATE orders SET created_at = now() + interval '1 h', updated_at = now() + interval '1 h'"
            )
            return await call(api, "POST", f"{placed.headers['location']}/cancel")

    shown = json.loads(asyncio.run(scenario()).body)
    assert shown["status"] == "CANCELLED"
    assert shown["updatedAt"] == shown["createdAt"]
    (created_at, updated_at, aborted_at) = connection.execute(
        "SELECT created_at, updated_at, aborted_at FROM orders"
    ).fetchall()[0]
    assert created_at == updated_at == aborted_at
    values = connection.execute("SELECT value FROM outbox WHERE topic <> 'order.created.v1'").fetchall()
    assert {json.loads(value)["occurredAt"] for (value,) in values} == {shown["updatedAt"]}
