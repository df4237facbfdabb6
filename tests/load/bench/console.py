"""`make bench-console`: measures how fast the console answers with ORDERS (3,000,000) orders, by the API and the pages.

It starts its own system and fills it with orders as they are in production. Then it asks for the list, for every filter
and some combinations, for searches, and for the pages of single orders. It asks one request after the other, as an
operator does. The figures are only reported. If an answer has another status than 200, the exit code is 1.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlencode

import httpx
import psycopg
from msgspec import Struct

from orderstream.console.orders.filters import REASONS
from orderstream.local.operator_token import FILE
from tests.load.bench.console_rows import LARGE_USER, RARE_SKU, SMALL_USER, fill
from tests.load.system import BENCH_DIR, AlreadyRunningError, exclusive_system, say
from tests.support.system import System

ORDERS = 3_000_000
REQUESTS = 60
"""Requests of each row, by the API and as many by the page."""
WARM_UP = 5
PAUSE_SECONDS = 0.015
"""Pause after each request: the console refuses a visitor who sends more requests than a person can."""
TARGET_P95_MS = 100
SEED = 1


class Row(Struct, frozen=True):
    """A kind of request, and its parameters, from which each request takes one set at random."""

    name: str
    queries: Sequence[dict[str, str]]


LISTS = (
    Row("list", [{}]),
    Row("list, 200 orders", [{"limit": "200"}]),
    Row("status CONFIRMED", [{"status": "CONFIRMED"}]),
    Row("open", [{"status": "PROCESSING,PAID"}]),
    Row("status FAILED", [{"status": "FAILED"}]),
    Row("status CANCELLED", [{"status": "CANCELLED"}]),
    Row("FAILED or CANCELLED", [{"status": "FAILED,CANCELLED"}]),
    Row("failureReason", [{"failureReason": reason} for reason in REASONS]),
    Row("stuck", [{"stuck": "true"}]),
    Row("compensating", [{"compensating": "true"}]),
    Row("age", [{"minAgeSeconds": str(day * 86_400)} for day in range(29)]),
    Row("userId", [{"userId": user} for user in (LARGE_USER, SMALL_USER, "user-77", "user-200000", "no-such-user")]),
    Row("sku", [{"sku": sku} for sku in ("SKU-77", "SKU-4000", RARE_SKU, "no-such-sku")]),
    Row("userId, a day long", [{"userId": LARGE_USER, "minAgeSeconds": "86400", "maxAgeSeconds": "172800"}]),
    Row("FAILED, userId", [{"status": "FAILED", "userId": user} for user in (LARGE_USER, SMALL_USER)]),
    Row("CONFIRMED, sku, age", [{"status": "CONFIRMED", "sku": "SKU-77", "maxAgeSeconds": "864000"}]),
    Row("reason, sku", [{"failureReason": "OUT_OF_STOCK", "sku": "SKU-77"}]),
    Row("stuck, userId", [{"stuck": "true", "userId": SMALL_USER}]),
)


def main() -> int:
    """Measure, print one table, and return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=ORDERS)
    orders = parser.parse_args().orders
    with exclusive_system(BENCH_DIR, REPLICAS_CONSOLE="1") as system:
        say(f"Filling the tables with {orders:,} orders")
        fill(system.superuser_url, orders)
        ids = _some_ids(system)
        print(f"| request, with {orders:,} orders | API p50 / p95 | page p50 / p95 |", "|---|---|---|", sep="\n")
        with _client(system) as client:
            rows = [*_rows(client, ids)]
    slow = [name for name, p95 in rows if p95 > TARGET_P95_MS]
    print(f"| over {TARGET_P95_MS} ms at p95 | {', '.join(slow) or 'none'} | |")
    return 0


def _client(system: System) -> httpx.Client:
    token = (system.state.root / FILE).read_text(encoding="utf-8").strip()
    return httpx.Client(
        base_url=system.urls["CONSOLE_URL"],
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
        trust_env=False,
        follow_redirects=False,
    )


def _some_ids(system: System) -> list[str]:
    """Return ids of orders of all ages, from pages of the table at random."""
    with psycopg.connect(system.urls["POSTGRES_URL"]) as connection:
        found = connection.execute(
            "SELECT id FROM (SELECT id FROM orders TABLESAMPLE SYSTEM (1)) AS sample ORDER BY random() LIMIT 500"
        ).fetchall()
    return [order_id for (order_id,) in found]


def _rows(client: httpx.Client, ids: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Measure each row and print it. Yield its name and the larger of its two percentiles 95."""
    random_ids = random.Random(SEED)
    for row in LISTS:
        addresses = [f"/orders?{urlencode(query)}" for query in row.queries]
        yield _measure(client, row.name, [f"/api{address}" for address in addresses], addresses)
    further = [_second_page(client, "/api/orders"), _second_page(client, "/api/orders?status=FAILED")]
    yield _measure(client, "second page", [f"/api{address}" for address in further], further)
    chosen = random_ids.sample(list(ids), min(len(ids), REQUESTS))
    yield _measure(
        client, "one order", [f"/api/orders/{order_id}" for order_id in chosen], [f"/orders/{key}" for key in chosen]
    )
    found = [f"/api/search?q={text}" for text in (*chosen[:20], *(key[:18] for key in chosen[:20]), "key-2", "key-4")]
    yield _measure(client, "search by id or key", found, [])


def _second_page(client: httpx.Client, address: str) -> str:
    cursor = client.get(address).json()["next"]
    return f"{address.removeprefix('/api')}{'&' if '?' in address else '?'}cursor={cursor}"


def _measure(client: httpx.Client, name: str, api: Sequence[str], pages: Sequence[str]) -> tuple[str, float]:
    by_api, by_page = _times(client, api), _times(client, pages)
    print(f"| {name} | {_in_words(by_api)} | {_in_words(by_page)} |", flush=True)
    return name, max(_p95(times) for times in (by_api, by_page) if times)


def _p95(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def _times(client: httpx.Client, addresses: Sequence[str]) -> list[float]:
    """Return the milliseconds of REQUESTS requests for these addresses in turn. Raises an error for a bad answer."""
    times = []
    for number in range(WARM_UP + REQUESTS if addresses else 0):
        began = time.perf_counter()
        answer = client.get(addresses[number % len(addresses)])
        took = (time.perf_counter() - began) * 1_000
        answer.raise_for_status()
        if number >= WARM_UP:
            times.append(took)
        time.sleep(PAUSE_SECONDS)
    return times


def _in_words(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.1f} / {_p95(times):.1f} ms" if times else "-"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AlreadyRunningError, httpx.HTTPError) as error:
        sys.exit(str(error))
