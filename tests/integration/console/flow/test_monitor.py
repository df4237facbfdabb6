"""The overview and `GET /api/flow` say what real servers do, and stand when one of them stops, hangs or dies."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from orderstream.api_gateway.orders.order_id import new_order_id
from orderstream.console.flow import postgres_reader
from orderstream.console.flow.postgres_reader import Pace
from orderstream.console.flow.source import SILENT_SECONDS, WATCHED_SECONDS
from orderstream.kafka.topics import dead_letter_topic
from orderstream.local import backlog
from orderstream.postgres.connect import Connection, connect
from orderstream.settings import Settings
from tests.integration.console.flow.conftest import PREFIX
from tests.integration.decisions.orders import place
from tests.support.consoles import RunningConsole, running_console
from tests.support.processes import Process
from tests.support.servers import Server, Servers
from tests.support.system import free_port
from tests.support.topics import publish
from tests.support.waiting import wait_until

LIMIT_SECONDS = 60
PAGE_SECONDS = 1
"""How often an open overview asks for its figures: `ui.live` in overview.html."""


def texts(console: RunningConsole) -> list[str]:
    """Return the problems that the API reports."""
    return [problem["text"] for problem in console.get("/api/flow")["problems"]]


def wait_for(console: RunningConsole, pattern: str) -> dict[str, Any]:
    """Wait until a problem has this text, and return it. The page says the same at the same moment."""

    def look() -> dict[str, Any] | None:
        found = console.get("/api/flow")["problems"]
        return next((problem for problem in found if re.match(pattern, problem["text"])), None)

    return wait_until(look, LIMIT_SECONDS, pattern) or {}


def wait_until_well(console: RunningConsole) -> None:
    wait_until(
        lambda: all(source["answers"] for source in console.get("/api/flow")["sources"]), LIMIT_SECONDS, "all answer"
    )


@contextmanager
def paused(server: Server) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


def test_the_overview_learns_of_a_silent_server_within_five_seconds() -> None:
    """A sample begins every WATCHED_SECONDS, and a page asks every second. The other tests show that nothing waits."""
    assert WATCHED_SECONDS + SILENT_SECONDS + PAGE_SECONDS <= 5


@pytest.mark.parametrize(("name", "title"), [("kafka", "Kafka"), ("postgres", "Postgres"), ("valkey", "Valkey")])
def test_a_server_that_hangs_is_reported_and_delays_nothing_else(
    console: RunningConsole, servers: Servers, name: str, title: str
) -> None:
    wait_until_well(console)
    with paused(getattr(servers, name)):
        problem = wait_for(console, f"{title} has not answered since ")
        assert problem["severity"] == ("warning" if name == "valkey" else "error")
        assert problem["since"]
        page = console.page("/")
        assert f"{title} has not answered since" in page

        def others() -> bool:
            sources = {source["name"]: source for source in console.get("/api/flow")["sources"]}
            silent = sources.pop(name)
            return silent["ageSeconds"] > 4 and all(source["ageSeconds"] < 4 for source in sources.values())

        wait_until(others, LIMIT_SECONDS, "the other figures stay new")
    wait_for(console, f"{title} has answered again since ")
    wait_until_well(console)


def test_kafka_is_killed_while_the_console_asks_for_groups_and_comes_back(
    console: RunningConsole, servers: Servers
) -> None:
    """An admin request to the coordinator of a group could abort the process here. See kafka/group_offsets.py."""
    wait_until_well(console)
    servers.kafka.kill()
    try:
        for path in ("/api/groups", "/api/topics", "/api/groups?all=true", "/topics", "/"):
            assert console.client.get(path).status_code == 200
        wait_for(console, "Kafka has not answered since ")
        assert console.get("/api/groups")["problem"].startswith("Kafka has not answered since ")
        assert console.get(f"/api/topics/{PREFIX}order.created.v1", 503)["detail"]
        assert "show what was known last" in console.page("/topics")
    finally:
        servers.kafka.start()
    wait_for(console, "Kafka has answered again since ")
    wait_until(lambda: console.get("/api/groups")["problem"] is None, LIMIT_SECONDS, "the groups are known again")


def test_the_page_stands_before_any_server_has_answered(watched: Settings) -> None:
    nowhere = {
        "postgres_url": "postgresql://app@127.0.0.1:1/orders", "redis_url": "redis://127.0.0.1:1/0",
        "kafka_brokers": "127.0.0.1:1",
    }  # fmt: skip
    with running_console(watched.model_copy(update=nowhere)) as console:
        assert "The orders are not known yet" in console.page("/")
        found = console.get("/api/flow")
        assert (found["orders"], found["outbox"], found["topics"]) == (None, None, [])
        wait_for(console, "Postgres has not answered since the console started at ")
        wait_for(console, "Kafka has not answered since the console started at ")


def test_orders_events_lag_and_dead_letters_are_counted(console: RunningConsole, watched: Settings) -> None:
    wait_until_well(console)
    order_ids: list[str] = []

    def accepted() -> bool:
        with connect(watched.postgres_url, "test") as connection:
            seconds = connection.execute("SELECT extract(epoch FROM now())::float8").fetchone()
            assert seconds is not None
            order_ids.append(new_order_id(seconds[0]))
            connection.execute(
                "INSERT INTO orders (id, user_id, amount, currency) VALUES (%s, '<b>u</b>', 129, 'USD')",
                (order_ids[-1],),
            )
        orders = console.get("/api/flow")["orders"]
        return (orders["acceptedPerSecond"] or 0) > 0 and orders["latest"] != []

    wait_until(accepted, LIMIT_SECONDS, "the pace of orders")
    wait_until(lambda: order_ids[-1] in console.page("/"), LIMIT_SECONDS, "the newest order is on the overview")
    with connect(watched.postgres_url, "test") as connection:
        connection.execute("UPDATE orders SET status = 'CANCELLED', payment = 'failed', stock = 'released'")
        connection.execute(
            "INSERT INTO outbox (topic, order_id, event_id, value, created_at)"
            " SELECT 'order.created.v1', 'x', gen_random_uuid(), '{}', now() - interval '1 minute'"
            " FROM generate_series(1, 7)"
        )
    wait_until(
        lambda: (console.get("/api/flow")["orders"]["settledPerSecond"] or 0) > 0, LIMIT_SECONDS, "orders settle"
    )
    wait_for(console, "outbox-relay is behind: 7 events wait to be published, the oldest for ")

    record = (f"{PREFIX}order.created.v1", str(uuid4()).encode(), b"{}")
    letter = (f"{PREFIX}{dead_letter_topic('order-service')}", b"k", b"v")
    publish(watched.kafka_brokers, [record, record, record, letter])
    wait_for(console, "order-service could not process 1 record in the last 5 minutes")

    def lagging() -> Any:
        flow = console.get("/api/flow")
        worker = next(group for group in flow["groups"] if group["name"] == "payment-worker")
        return (flow, worker) if worker["lag"] == 3 else None

    # A sample may lie between the dead letter and the records.
    found, group = wait_until(lagging, LIMIT_SECONDS, "payment-worker is three records behind")
    assert group["lagByTopic"] == {"order.created.v1": 3, "order.aborted.v1": 0}
    assert found["deadLetters"] == 1
    said = backlog.report(watched)
    assert "payment-worker       3 records behind (3 of flow-order.created.v1), 0 dead letters" in said
    assert found["outbox"]["number"] == 7
    assert any(line.startswith("outbox               7 events, the oldest for ") for line in said)
    topic = next(topic for topic in found["topics"] if topic["name"] == "order.created.v1")
    assert (topic["partitions"], topic["records"]) == (2, 3)


def test_a_span_with_too_many_orders_has_no_rate(
    postgres_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_reader, "PACE_MAX", 3)
    monkeypatch.setattr(postgres_reader, "SETTLING_SECONDS", -3_600.0)
    reader = postgres_reader.PostgresReader(postgres_url)
    assert reader.ask().pace == Pace(None, None, 0)
    span = connection.execute("SELECT extract(epoch FROM now())::float8 + 1800").fetchone()
    assert span is not None
    monkeypatch.setattr(reader, "_upto", new_order_id(span[0] - 1))
    for number, accepted in enumerate((1, 2, None), 1):
        place(connection, order_id=new_order_id(span[0] + number))
        monkeypatch.setattr(reader, "_upto", new_order_id(span[0] - 1))
        pace = reader.ask().pace
        assert (pace.accepted, pace.open_before) == (accepted, None if accepted is None else number)
        assert (pace.seconds or 0) > 0
    reader.close()


def test_the_session_of_the_monitor_cannot_write(postgres_url: str) -> None:
    reader = postgres_reader.PostgresReader(postgres_url)
    reader.ask()
    assert reader._connection is not None
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        reader._connection.execute("DELETE FROM orders")
    reader.close()


def test_a_process_that_hangs_or_dies_is_reported(watched: Settings, servers: Servers) -> None:
    port = free_port()
    with running_console(
        watched.model_copy(update={"console_instances": f"outbox-relay=http://127.0.0.1:{port}"})
    ) as console:
        wait_for(console, "outbox-relay does not answer.")
        environment = {**servers.environment, "POSTGRES_URL": watched.postgres_url, "METRICS_PORT": str(port)}
        command = [sys.executable, "-m", "orderstream.cli", "outbox-relay"]
        environment["KAFKA_TOPIC_PREFIX"] = PREFIX
        with Process(command, env=environment) as relay:
            try:
                wait_until(lambda: relay_of(console)["state"] == "ready", LIMIT_SECONDS, "the relay is ready")
                assert relay_of(console)["instances"][0]["memoryBytes"] > 1_000_000
                assert "1 of 1 ready" in console.page("/")
                first = relay_of(console)["instances"][0]["restarts"]
            finally:
                relay.kill()
        problem = wait_for(console, "outbox-relay does not answer.")
        assert problem["effect"].startswith("Orders are accepted and wait in the outbox")
        with Process(command, env=environment) as again:
            try:
                wait_for(console, "outbox-relay has restarted at ")
                assert relay_of(console)["instances"][0]["restarts"] == first + 1
            finally:
                again.kill()


def relay_of(console: RunningConsole) -> Any:
    return next(service for service in console.get("/api/flow")["services"] if service["name"] == "outbox-relay")
