"""A thousand orders at once, with too little stock and declined payments: orders, payments and stock agree exactly.

Every published event is checked against its contract (P2 to P5, P9).
"""

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from orderstream.audit.under_way import under_way
from orderstream.domain.events import TOPICS
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.kafka.topics import dead_letter_topic
from orderstream.payment_worker.providers.simulated import draw
from tests.e2e.services import Services, services
from tests.support.contracts import assert_event
from tests.support.databases import Databases
from tests.support.servers import Servers
from tests.support.topics import Letter, Tap
from tests.support.waiting import wait_until

ORDERS, STOCK, SUCCESS_RATE = 1_000, 300, 0.7
SKU = "SKU-1"
UNFINISHED_ROWS = """
SELECT (SELECT count(*) FROM payments WHERE state IN ('PENDING', 'VOIDING'))
     + (SELECT count(*) FROM orders JOIN reservations ON order_id = id AND state = 'RELEASED' WHERE stock <> 'released')
"""
DEAD_LETTERS = [dead_letter_topic(group) for group in CONSUMER_GROUPS]


def _place(running: Services, number: int) -> list[str]:
    """Place `number` orders from eight clients at once, and return their ids."""
    body = {"userId": "u-1", "items": [{"sku": SKU, "qty": 1, "price": 5}], "amount": "5.00", "currency": "USD"}
    with httpx.Client(base_url=running.base_url, timeout=30) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/orders", json=body), range(number)))
    assert {answer.status_code for answer in answers} == {201}
    return [answer.json()["orderId"] for answer in answers]


def _one(running: Services, query: str) -> tuple[Any, ...]:
    with psycopg.connect(running.postgres_url) as connection:
        (found,) = connection.execute(query.encode()).fetchall()
        return tuple(found)


def _wait_finished(running: Services) -> None:
    with psycopg.connect(running.postgres_url, autocommit=True) as connection:
        wait_until(
            lambda: under_way(connection).is_quiet and _one(running, UNFINISHED_ROWS) == (0,),
            90,
            "every order is settled and compensated, with its payment and its reservation",
        )


def _outcomes(running: Services) -> Counter[tuple[str, ...]]:
    query = """
    SELECT orders.status, coalesce(failure_reason, '-'), payments.state, coalesce(reservations.state, '-')
    FROM orders JOIN payments ON payments.order_id = id LEFT JOIN reservations ON reservations.order_id = id
    """
    with psycopg.connect(running.postgres_url) as connection:
        return Counter(connection.execute(query.encode()).fetchall())


@pytest.mark.usefixtures("kafka_brokers")
def test_after_a_thousand_orders_the_orders_payments_and_stock_agree(
    tmp_path: Path, servers: Servers, databases: Databases
) -> None:
    with (
        services(tmp_path, servers, databases, PAYMENT_SUCCESS_RATE=str(SUCCESS_RATE)) as running,
        Tap(servers.kafka_brokers, [*TOPICS, *DEAD_LETTERS]) as tap,
    ):
        running.command("stock", "set", SKU, str(STOCK))
        order_ids = _place(running, ORDERS)
        assert len(set(order_ids)) == ORDERS
        _wait_finished(running)
        paid = sum(draw(order_id) < SUCCESS_RATE for order_id in order_ids)
        assert paid > STOCK
        assert _outcomes(running) == {
            ("CONFIRMED", "-", "AUTHORIZED", "RESERVED"): STOCK,
            ("FAILED", "OUT_OF_STOCK", "VOIDED", "RELEASED"): paid - STOCK,
            ("FAILED", "PAYMENT_DECLINED", "FAILED", "-"): ORDERS - paid,
        }
        assert _one(running, f"SELECT available, reserved FROM inventory WHERE sku = '{SKU}'") == (0, STOCK)  # noqa: S608
        assert _one(running, "SELECT sum(amount) FROM payments WHERE state = 'AUTHORIZED'") == (5 * STOCK,)
        _check_events(tap.so_far(), running, set(order_ids))


def _check_events(letters: list[Letter], running: Services, order_ids: set[str]) -> None:
    """Check every published event against its contract, and the last order.updated of each order against its row."""
    assert [letter for letter in letters if letter.topic in DEAD_LETTERS] == []
    values: dict[str, set[bytes | None]] = defaultdict(set)
    partitions: dict[str, set[int]] = defaultdict(set)
    last: dict[str, tuple[int, str]] = {}
    for letter in letters:
        body = assert_event(letter.topic, letter.key, letter.value)
        order_id = body["correlationId"]
        assert letter.headers["event-type"].decode() == body["type"]
        assert letter.headers["event-id"].decode() == body["id"]
        assert "traceparent" in letter.headers
        values[body["id"]].add(letter.value)
        partitions[order_id].add(letter.partition)
        if body["type"] == "order.updated":
            state = (body["payload"]["version"], body["payload"]["status"])
            last[order_id] = max(last.get(order_id, state), state)
    assert {letter.topic for letter in letters} == set(TOPICS)
    assert set(partitions) == order_ids
    assert {len(numbers) for numbers in partitions.values()} == {1}, "the events of an order are in several partitions"
    assert {len(versions) for versions in values.values()} == {1}, "a repeated event has other content"
    with psycopg.connect(running.postgres_url) as connection:
        rows = connection.execute("SELECT id, version, status FROM orders").fetchall()
    assert last == {order_id: (version, status) for order_id, version, status in rows}


@pytest.mark.usefixtures("kafka_brokers")
def test_when_no_payment_succeeds_every_order_fails(tmp_path: Path, servers: Servers, databases: Databases) -> None:
    with services(tmp_path, servers, databases, PAYMENT_SUCCESS_RATE="0") as running:
        order_ids = _place(running, 50)
        orders = [running.settled(order_id) for order_id in order_ids]
        assert {(order["status"], order["failureReason"]) for order in orders} == {("FAILED", "PAYMENT_DECLINED")}
        _wait_finished(running)
        assert _outcomes(running) == {("FAILED", "PAYMENT_DECLINED", "FAILED", "-"): 50}
        assert _one(running, "SELECT sum(reserved) FROM inventory") == (0,)
