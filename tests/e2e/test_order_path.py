"""One order as its customer sees it: the lines of the README, and the rows, cache entries and metrics afterwards."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from math import nan
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis

from orderstream.domain.events import topic_of
from orderstream.local.processes.state import checkout
from orderstream.settings import SERVICES, Settings
from orderstream.telemetry.metrics import CATALOGUE
from tests.e2e.services import Services, readme_block, services
from tests.load.soak.poison import CONSUMERS
from tests.support.databases import Databases
from tests.support.figures import Labels
from tests.support.servers import Servers
from tests.support.shell import paste
from tests.support.waiting import wait_until

ORDER = {"userId": "u-1", "items": [{"sku": "SKU-1", "qty": 1, "price": 129.0}], "amount": 129.0, "currency": "USD"}

# The walk-through of the first version. Only the port differs, so that existing scripts keep working.
FIRST_CREATE = r"""
curl -s -X POST http://localhost:3000/orders \
  -H 'content-type: application/json' \
  -d '{"userId":"u-1","items":[{"sku":"SKU-1","qty":1,"price":129.0}],
       "amount":129.0,"currency":"USD"}'
"""
FIRST_READ = "curl -s http://localhost:3000/orders/<orderId>"
FIRST_STOCK = """
CREATE TABLE IF NOT EXISTS inventory (
  sku TEXT PRIMARY KEY,
  available INT NOT NULL DEFAULT 0,
  reserved  INT NOT NULL DEFAULT 0
);
INSERT INTO inventory (sku, available, reserved)
VALUES ('SKU-1', 100, 0)
ON CONFLICT (sku) DO UPDATE SET available = EXCLUDED.available;
"""


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, servers: Servers, databases: Databases, kafka_brokers: str
) -> Iterator[Services]:
    """The services, with every payment authorized."""
    with services(tmp_path_factory.mktemp("path"), servers, databases) as started:
        yield started


def _rows(running: Services, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(running.postgres_url) as connection:
        return connection.execute(query.encode(), parameters).fetchall()


def test_the_lines_of_the_readme_place_an_order_and_read_it_back(running: Services) -> None:
    lines = readme_block("Place an order")
    assert "http://127.0.0.1:3000" in lines
    first, last = paste(lines.replace("http://127.0.0.1:3000", running.base_url)).splitlines()
    order_id = json.loads(first)["orderId"]
    order = json.loads(last)
    assert order["orderId"] == order_id
    assert order["status"] in ("PROCESSING", "PAID", "CONFIRMED")
    settled = running.settled(order_id)
    assert (settled["status"], settled["amount"], settled["currency"]) == ("CONFIRMED", 129, "USD")
    assert (settled["payment"]["state"], settled["stock"]["state"]) == ("authorized", "reserved")


def test_the_lines_of_the_readme_without_curl_place_an_order_and_show_it_confirmed(running: Services) -> None:
    lines = readme_block("Place an order", 1)
    assert ".venv/bin/python -c" in lines
    assert "http://127.0.0.1:3000" in lines
    here = lines.replace("http://127.0.0.1:3000", running.base_url).replace(".venv/bin/python", sys.executable)
    order = json.loads(paste(here))
    assert (order["status"], order["payment"]["state"], order["stock"]["state"]) == (
        "CONFIRMED",
        "authorized",
        "reserved",
    )


def test_the_example_order_of_the_first_version_is_still_confirmed(running: Services) -> None:
    here = running.base_url
    with psycopg.connect(running.postgres_url) as connection:
        connection.execute(FIRST_STOCK.encode())
    ((available, reserved),) = _rows(running, "SELECT available, reserved FROM inventory WHERE sku = 'SKU-1'")
    assert available == 100
    order_id = json.loads(paste(FIRST_CREATE.replace("http://localhost:3000", here)))["orderId"]
    running.settled(order_id)
    order = json.loads(paste(FIRST_READ.replace("http://localhost:3000", here).replace("<orderId>", order_id)))
    assert (order["orderId"], order["status"]) == (order_id, "CONFIRMED")
    assert _rows(running, "SELECT available, reserved FROM inventory WHERE sku = 'SKU-1'") == [(99, reserved + 1)]
    assert _rows(running, "SELECT user_id, amount, currency, status FROM orders WHERE id = %s", order_id) == [
        ("u-1", 129, "USD", "CONFIRMED")
    ]
    assert _rows(running, "SELECT sku, qty, price FROM order_items WHERE order_id = %s", order_id) == [
        ("SKU-1", 1, 129)
    ]


def _place(running: Services, **changes: object) -> str:
    answer = httpx.post(f"{running.base_url}/orders", json=ORDER | changes, timeout=10)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"/orders/{answer.json()['orderId']}"
    order_id: str = answer.json()["orderId"]
    return order_id


def test_a_settled_order_is_cached_by_its_first_read(running: Services, servers: Servers) -> None:
    before = _figures(running)
    order_id = _place(running)
    wait_until(
        lambda: _rows(running, "SELECT FROM orders WHERE id = %s AND status = 'CONFIRMED'", order_id),
        20,
        "the order settles",
    )
    # After its commit, order-service deletes what the cache has of the order. Then it counts the records.
    for event in ("payment.authorized", "inventory.reserved"):
        decided = _sample("order-service", "records_decided_total", service="order-service", topic=topic_of(event))
        _await(running, decided, before.get(decided, 0.0).__lt__)
    with redis.Redis.from_url(servers.redis_url) as client:
        key = f"order:{order_id}"

        def read() -> httpx.Response:
            answer = running.read(order_id)
            assert answer.status_code == 200
            return answer

        began = time.monotonic()
        first = read()
        assert first.headers["X-Cache"] == "MISS"
        value = wait_until(lambda: client.get(key), 5, "the key appears")
        assert json.loads(value) == first.json()
        left = int(client.ttl(key))
        assert left <= 120
        assert left + (time.monotonic() - began) >= 59
        second = read()
        assert (second.headers["X-Cache"], second.json()) == ("HIT", first.json())


@pytest.mark.parametrize(
    ("sku", "qty", "reason"), [("SKU-1", 1_000_000, "OUT_OF_STOCK"), ("NEVER-SEEN", 1, "UNKNOWN_SKU")]
)
def test_without_stock_an_order_fails_and_its_payment_is_voided(
    running: Services, sku: str, qty: int, reason: str
) -> None:
    running.command("stock", "set", "SKU-2", "5")
    before = _rows(running, "SELECT * FROM inventory ORDER BY sku")
    order_id = _place(running, items=[{"sku": sku, "qty": qty, "price": 1}, {"sku": "SKU-2", "qty": 1, "price": 1}])
    order = running.settled(order_id)
    assert (order["status"], order["failureReason"]) == ("FAILED", reason)
    wait_until(
        lambda: _rows(running, "SELECT FROM payments WHERE order_id = %s AND state = 'VOIDED'", order_id),
        20,
        "its payment is voided",
    )
    wait_until(
        lambda: _rows(
            running,
            "SELECT FROM orders WHERE id = %s AND status = 'FAILED' AND payment = 'voided' AND stock = 'released'",
            order_id,
        ),
        20,
        "the order is compensated",
    )
    assert _rows(running, "SELECT state, lines FROM reservations WHERE order_id = %s", order_id) == [("RELEASED", {})]
    assert _rows(running, "SELECT * FROM inventory ORDER BY sku") == before


# The events that each service consumes and publishes for one confirmed order.
EVENTS_OF_AN_ORDER = {
    "outbox-relay": ((), ("order.created",)),
    "payment-worker": (("order.created",), ("payment.authorized",)),
    "inventory-worker": (("payment.authorized",), ("inventory.reserved",)),
    "order-service": (("payment.authorized", "inventory.reserved"), ("order.updated",)),
}
Sample = tuple[str, str, Labels]


def _sample(service: str, name: str, /, **labels: str) -> Sample:
    return service, f"orderstream_{name}", tuple(sorted(labels.items()))


def _figures(running: Services) -> dict[Sample, float]:
    return {(service, *sample): value for service in SERVICES for sample, value in running.figures(service).items()}


def _await(running: Services, sample: Sample, holds: Callable[[float], bool]) -> None:
    service, name, labels = sample
    wait_until(lambda: holds(running.figures(service).get((name, labels), nan)), 20, f"the expected value of {sample}")


def _counters_of_an_order() -> Iterator[Sample]:
    for service, (consumed, published) in EVENTS_OF_AN_ORDER.items():
        for name, events in (
            ("records_consumed", consumed),
            ("records_decided", consumed),
            ("events_produced", published),
        ):
            for event in events:
                yield _sample(service, f"{name}_total", service=service, topic=topic_of(event))
    for service in CONSUMERS:
        for name in ("records_sum", "records_count", "seconds_sum", "seconds_count"):
            yield _sample(service, f"batch_{name}", service=service)
    for outcome in ("hit", "miss"):
        yield _sample("api-gateway", "cache_reads_total", outcome=outcome)


def test_the_metrics_of_every_service_count_an_order(running: Services) -> None:
    before = _figures(running)
    order_id = _place(running)
    assert running.settled(order_id)["status"] == "CONFIRMED"
    wait_until(lambda: running.read(order_id).headers["X-Cache"] == "HIT", 10, "the order is cached")
    for sample in _counters_of_an_order():
        _await(running, sample, before.get(sample, 0.0).__lt__)
    now = _figures(running)
    for service, topics in CONSUMERS.items():
        for name in topics:
            for count in ("records_dead_lettered_total", "records_retried_total"):
                sample = _sample(service, count, service=service, topic=name)
                assert now[sample] == before[sample]


def _zero_at_rest() -> Iterator[Sample]:
    yield _sample("outbox-relay", "outbox_rows")
    yield _sample("outbox-relay", "outbox_oldest_seconds")
    yield _sample("payment-worker", "voiding_oldest_seconds")
    yield _sample("order-service", "uncompensated_oldest_seconds")
    for service, topics in CONSUMERS.items():
        for name, partition in product(topics, range(Settings.model_fields["kafka_partitions"].default)):
            yield _sample(service, "lag_records", service=service, topic=name, partition=str(partition))


def test_a_system_without_open_work_shows_every_metric_and_zero_waiting_work(running: Services) -> None:
    for sample in _zero_at_rest():
        _await(running, sample, lambda value: value == 0)
    shown = {name.removesuffix("_bucket") for _, name, _ in _figures(running)}
    assert {metric.name for metric in CATALOGUE} <= shown


def test_the_stock_commands_change_and_show_the_stock(running: Services) -> None:
    running.command("stock", "set", "SKU-9", "5")
    running.command("stock", "add", "SKU-9", "2")
    assert running.command("stock", "list").split()[-3:] == ["SKU-9", "7", "0"]


K6_THRESHOLDS_CROSSED = 99
"""Exit code of k6 if a threshold of the script was crossed."""


def _k6(running: Services, order_path: str, summary: Path) -> int:
    # Its limits are for a machine that has nothing else to do. One pause of a busy machine exceeds them.
    text = (checkout() / "k6" / "orderstream.js").read_text(encoding="utf-8")
    assert text.count("p(95)<500'") == 2
    assert text.count("p(95)<2000'") == 1
    script = summary.with_name("orderstream.js")
    script.write_text(text.replace("p(95)<500'", "p(95)<5000'").replace("p(95)<2000'", "p(95)<8000'"), "utf-8")
    command = [str(Path(sys.executable).with_name("k6")), "run", str(script), "--quiet"]
    command += ["--no-usage-report", "--vus", "2", "--duration", "3s", f"--summary-export={summary}"]
    for variable in (f"BASE_URL={running.base_url}", f"ORDER_PATH={order_path}", "ID_FIELD=orderId"):
        command += ["--env", variable]
    return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=60, check=False).returncode


def test_the_load_script_places_orders_that_settle_within_its_limits(running: Services, tmp_path: Path) -> None:
    running.command("stock", "set", "SKU-1", "100000")
    assert _k6(running, "/orders", tmp_path / "summary.json") == 0
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert metrics["orders_confirmed"]["count"] > 0
    assert "orders_failed" not in metrics
    crossed = [limits for metric in metrics.values() for limits in metric.get("thresholds", {}).values()]
    assert len(crossed) >= 6
    assert not any(crossed)


def test_the_load_script_fails_if_no_order_is_accepted(running: Services, tmp_path: Path) -> None:
    assert _k6(running, "/no-orders", tmp_path / "summary.json") == K6_THRESHOLDS_CROSSED


def test_a_clean_start_and_stop_leaves_nothing_in_the_outbox(running: Services) -> None:
    wait_until(lambda: not _rows(running, "SELECT FROM outbox"), 20, "everything is published")
