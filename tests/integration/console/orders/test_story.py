"""GET /api/orders/{orderId} and the page of one order, on a real PostgreSQL and a real Kafka."""

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from orderstream.console.local_stack import LocalStack
from orderstream.console.orders import record_search, story, story_pages
from orderstream.console.orders.stored import read_stored
from orderstream.dead_letters.letter import JOB_HEADER
from orderstream.domain.events import TOPICS, topic_of
from orderstream.local.processes.state import StateDir
from orderstream.postgres.connect import Connection, connect
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.settings import Settings
from tests.integration.console.orders.patience import patience
from tests.integration.decisions.orders import aborted, authorized, created, place, record, result
from tests.support.consoles import RunningConsole, running_console
from tests.support.databases import Databases
from tests.support.samples import AT
from tests.support.servers import Servers
from tests.support.topics import publish, publish_events

TRACE = "0af7651916cd43dd8448eb211c80319c"
PAYLOADS = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "javascript:alert(1)")


@pytest.fixture(scope="module")
def settings(databases: Databases, servers: Servers, kafka_brokers: str) -> Iterator[Settings]:
    """The settings of one database for all tests of this file: each test has orders of its own.

    The first record of each topic may take seconds. It is written here, so that the events of the tests are not late.
    """
    publish(kafka_brokers, [(topic, b"first", b"{}") for topic in TOPICS])
    with databases.migrated() as url:
        yield Settings.model_validate(
            {"postgres_url": url, "redis_url": servers.redis_url, "kafka_brokers": kafka_brokers}
        )


@pytest.fixture(scope="module")
def console(settings: Settings) -> Iterator[RunningConsole]:
    with patience(), running_console(settings) as running:
        yield running


@pytest.fixture(scope="module")
def connection(settings: Settings) -> Iterator[Connection]:
    with connect(settings.postgres_url, "test") as opened:
        yield opened


def update(connection: Connection, order_id: str, **columns: object) -> None:
    names = ", ".join(f"{name} = %({name})s" for name in columns)
    connection.execute(f"UPDATE orders SET {names} WHERE id = %(id)s".encode(), {**columns, "id": order_id})  # noqa: S608


def pending(connection: Connection, order_id: str, attempts: int = 0, *, by_bank: bool = False) -> None:
    connection.execute(
        "INSERT INTO payments (order_id, state, attempts, next_attempt_at, pending_since)"
        " VALUES (%s, 'PENDING', %s, now() + interval '5 s', CASE WHEN %s THEN now() END)",
        (order_id, attempts, by_bank),
    )


def confirmed(connection: Connection) -> str:
    """Store a confirmed order as the services leave it."""
    order_id = place(connection, {"SKU-1": 1, "SKU-2": 3})
    record(connection, authorized(order_id), result("inventory.reserved", order_id))
    update(connection, order_id, status="CONFIRMED", payment="authorized", stock="reserved", version=3)
    return order_id


def settle_in_kafka(settings: Settings, order_id: str) -> list[tuple[str, int, int]]:
    """Publish the events of a confirmed order."""
    events = [created(order_id), authorized(order_id), result("inventory.reserved", order_id)]
    return publish_events(settings.kafka_brokers, events, {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01".encode()})


def test_a_settled_order_tells_its_whole_story(
    console: RunningConsole, connection: Connection, settings: Settings
) -> None:
    order_id = confirmed(connection)
    written = settle_in_kafka(settings, order_id)
    told = console.get(f"/api/orders/{order_id.upper()}")
    assert told.keys() >= {"order", "payment", "reservation", "events", "spans", "waitingFor", "logs", "limits"}
    assert told["waitingFor"] is None
    assert told["order"]["status"] == "CONFIRMED"
    assert told["order"]["traceId"] == TRACE
    assert [(line["sku"], line["qty"]) for line in told["order"]["lines"]] == [("SKU-1", 1), ("SKU-2", 3)]
    assert (told["payment"]["state"], told["payment"]["providerReference"]) == ("AUTHORIZED", order_id)
    assert told["reservation"]["state"] == "RESERVED"
    found = [(event["topic"], event["partition"], event["offset"]) for event in told["events"]]
    assert sorted(found) == sorted(written)
    first = next(event for event in told["events"] if event["type"] == "order.created")
    assert (first["type"], first["occurredAt"], first["traceId"]) == (
        "order.created",
        AT.isoformat().replace("+00:00", "Z"),
        TRACE,
    )
    assert first["recordedAt"] is not None
    assert first["headers"] == [{"name": "traceparent", "value": f"00-{TRACE}-b7ad6b7169203331-01"}]
    assert first["data"]["orderId"] == order_id
    assert told["limits"]["sentences"] == []


@pytest.mark.parametrize("order_id", ["519f1068-291e-4b33-bf76-901fe5f20924", "not-an-id", "1", "%3Cscript%3E"])
def test_an_unknown_or_malformed_id_is_404(console: RunningConsole, order_id: str) -> None:
    for path in (f"/api/orders/{order_id}", f"/orders/{order_id}"):
        assert console.client.get(path).status_code == 404
    assert console.get(f"/api/orders/{order_id}", 404)["type"] == "urn:orderstream:problem:not-found"


def test_open_failed_and_compensating_orders_say_what_they_wait_for(
    console: RunningConsole, connection: Connection
) -> None:
    """Each state of test_waiting.py is one of these in PostgreSQL: open, pending, stuck, cancelled, compensating."""
    waits: dict[str, Any] = {}
    waits["kafka"] = place(connection)
    waits["payment_retry"] = place(connection)
    pending(connection, waits["payment_retry"], 2)
    waits["provider_pending"] = place(connection)
    pending(connection, waits["provider_pending"], by_bank=True)
    waits["stock"] = place(connection)
    record(connection, authorized(waits["stock"]))
    waits["compensation"] = place(connection)
    record(connection, aborted(waits["compensation"], reason=None))
    waits["outbox"] = place(connection)
    append(connection, [OutboxRow(created(waits["outbox"]))])
    for kind, order_id in waits.items():
        told = console.get(f"/api/orders/{order_id}")["waitingFor"]
        assert told["kind"] == kind
        page = console.page(f"/orders/{order_id}")
        assert told["sentence"] in page
        assert 'hx-trigger="every 1s"' in page
    stuck = place(connection)
    update(connection, stuck, next_check_at="2026-01-01")
    assert console.get(f"/api/orders/{stuck}")["waitingFor"]["isOverdue"]


def test_an_event_in_the_outbox_is_shown_as_not_published(console: RunningConsole, connection: Connection) -> None:
    order_id = place(connection)
    append(connection, [OutboxRow(created(order_id))])
    (event,) = console.get(f"/api/orders/{order_id}")["events"]
    assert (event["type"], event["isPublished"], event["offset"]) == ("order.created", False, None)
    assert "not published yet" in console.page(f"/orders/{order_id}?all=true")


def test_a_record_that_was_published_again_is_a_repetition(
    console: RunningConsole, connection: Connection, settings: Settings
) -> None:
    order_id = confirmed(connection)
    (first, *_) = settle_in_kafka(settings, order_id)
    publish_events(settings.kafka_brokers, [created(order_id)], {JOB_HEADER: b"7"})
    told = [event for event in console.get(f"/api/orders/{order_id}")["events"] if event["type"] == "order.created"]
    assert told[0]["repeats"] is None
    assert told[1]["repeats"] == {"partition": first[1], "offset": first[2]}
    assert told[1]["isRedriven"]
    page = console.page(f"/orders/{order_id}?all=true")
    assert f"repeats offset {first[2]}" in page


def test_hostile_values_are_shown_as_text(console: RunningConsole, connection: Connection, settings: Settings) -> None:
    order_id = place(connection, dict.fromkeys(PAYLOADS, 1))
    update(connection, order_id, user_id=PAYLOADS[0], idempotency_key="".join(PAYLOADS))
    connection.execute(
        "INSERT INTO operator_actions (actor, kind, subject, reason) VALUES (%s, %s, %s, %s)",
        (PAYLOADS[0], PAYLOADS[1], order_id, PAYLOADS[2]),
    )
    for payload in PAYLOADS:
        name = payload.encode()
        publish(settings.kafka_brokers, [(topic_of("order.updated"), order_id.encode(), name)], {payload: name})
    page = console.page(f"/orders/{order_id}?all=true")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert 'href="javascript:' not in page
    assert "{{7*7}}" in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert not re.search(r"""(?:id|class)=["'][^"']*(?:onerror|alert|7\*7)""", page)


def test_a_long_history_is_shown_page_by_page(
    console: RunningConsole, connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 events of one order: the search stops, says so, and goes on; the page shows few at a time."""
    order_id = place(connection)
    updated = topic_of("order.updated")
    written = publish(settings.kafka_brokers, [(updated, order_id.encode(), b"{}")] * 1_000)
    told = console.get(f"/api/orders/{order_id}")
    searched = next(topic for topic in told["limits"]["topics"] if topic["topic"] == updated)
    assert searched["state"] == "stopped"
    assert searched["sentence"] in told["limits"]["sentences"]
    offsets = [event["offset"] for event in told["events"]]
    offset = searched["nextOffset"]
    while offset < searched["endOffset"] and len(offsets) < 1_000:
        more = console.get(f"/api/orders/{order_id}/events", topic=updated, offset=offset)
        offsets += [event["offset"] for event in more["events"]]
        offset = more["topic"]["nextOffset"]
    assert offsets == [place[2] for place in written]
    monkeypatch.setattr(story_pages, "EVENTS_PER_PAGE", 20)
    page = console.page(f"/orders/{order_id}?all=true&page=2")
    assert page.count('<li id="event-') == 20
    assert "Page 2 of 3" in page
    onwards = console.page(f"/orders/{order_id}/events?topic={updated}&offset={searched['nextOffset']}")
    assert "Go on from offset" in onwards


@pytest.mark.parametrize("query", ["topic=secret.v1&offset=0", "topic=order.created.v1&offset=-1", "offset=1", "x=1"])
def test_a_wrong_topic_or_offset_is_refused(console: RunningConsole, query: str) -> None:
    assert console.client.get(f"/api/orders/{uuid4()}/events?{query}").status_code == 400


def test_without_kafka_the_page_shows_everything_else_and_says_so(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_search, "ANSWER_SECONDS", 0.3)
    order_id = confirmed(connection)
    with running_console(settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"})) as console:
        told = console.get(f"/api/orders/{order_id}")
        assert told["order"]["status"] == "CONFIRMED"
        assert told["limits"]["kafka"].startswith("Kafka did not answer")
        page = console.page(f"/orders/{order_id}?all=true")
    assert "Kafka did not answer" in page
    assert "Payment AUTHORIZED" in page


def test_two_operators_read_one_order_at_the_same_time_and_agree(
    console: RunningConsole, connection: Connection, settings: Settings
) -> None:
    order_id = confirmed(connection)
    settle_in_kafka(settings, order_id)
    first = console.get(f"/api/orders/{order_id}")
    second = console.reader.get(f"/api/orders/{order_id}").json()
    assert first | {"asOf": 0, "limits": 0} == second | {"asOf": 0, "limits": 0}


def test_the_page_is_fast_first_and_whole_after_a_click(
    console: RunningConsole, connection: Connection, settings: Settings
) -> None:
    order_id = confirmed(connection)
    settle_in_kafka(settings, order_id)
    page = console.page(f"/orders/{order_id}")
    assert f'hx-get="/orders/{order_id}/story?page=1" hx-trigger="load"' in page
    assert f'href="/orders/{order_id}?all=true"' in page
    assert "partition" not in page
    fragment = console.client.get(f"/orders/{order_id}/story", headers={"HX-Request": "true"}).text
    assert "<html" not in fragment
    assert 'id="order-story"' in fragment
    whole = console.page(f"/orders/{order_id}/story")
    assert "<html" in whole
    assert "partition" in whole


def test_a_settled_order_is_calm(console: RunningConsole, connection: Connection) -> None:
    order_id = confirmed(connection)
    update(connection, order_id, updated_at="2026-01-01")
    page = console.page(f"/orders/{order_id}?all=true")
    assert "hx-trigger" not in page


def test_log_lines_of_the_local_stack_are_part_of_the_story(
    connection: Connection, settings: Settings, tmp_path: Any
) -> None:
    order_id = confirmed(connection)
    local = LocalStack(StateDir(tmp_path))
    local.state.logs.mkdir()
    line = f'{{"timestamp":"2026-01-02T03:04:05Z","level":"warning","service":"order-service","event":"{PAYLOADS[0]}"'
    local.state.log("order-service").write_text(f'{line},"order_id":"{order_id}","trace_id":"{TRACE}"}}\n')
    with running_console(settings, local) as console:
        (told,) = console.get(f"/api/orders/{order_id}")["logs"]
        page = console.page(f"/orders/{order_id}?all=true")
    assert (told["service"], told["traceId"]) == ("order-service", TRACE)
    assert f'href="#trace-{TRACE}"' in page
    assert "<script>alert" not in page


def test_the_known_times_are_those_of_the_rows_and_the_actions(connection: Connection) -> None:
    order_id = confirmed(connection)
    stored = read_stored(connection, order_id)
    assert stored is not None
    assert {AT, stored.order.created_at} <= set(story.known_times(stored))
    assert stored.order.now not in story.known_times(stored)
    assert read_stored(connection, str(uuid4())) is None
