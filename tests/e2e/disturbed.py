"""A running system that a test disturbs with faults, and the orders that a client places meanwhile.

The supervisor of the system restarts processes that die.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg

from orderstream.audit.check import audit, table
from orderstream.audit.under_way import under_way
from orderstream.postgres.connect import Connection
from tests.support.system import System, Up, system
from tests.support.waiting import wait_until

ORDER = {"userId": "u-1", "items": [{"sku": "SKU-1", "qty": 1, "price": 1}], "amount": 1, "currency": "USD"}
PAUSE_SECONDS = 0.02


class DisturbedSystem:
    """A running system, a client of its API, and the checks on its database."""

    def __init__(self, running: System, up: Up) -> None:
        self.system = running
        self.up = up
        self.postgres_url = running.urls["POSTGRES_URL"]
        self.redis_url = running.urls["REDIS_URL"]
        self._connection: Connection | None = None
        self._client = httpx.Client(base_url=running.base_url, timeout=15)

    def close(self) -> None:
        """Close the connections of the client and of the checks."""
        self._client.close()
        if self._connection is not None:
            self._connection.close()

    def post(self, **headers: str) -> httpx.Response:
        """Send a valid order."""
        return self._client.post("/orders", json=ORDER, headers=headers)

    def place(self, count: int) -> list[str]:
        """Place `count` orders, one after the other. Each must be accepted. Return their ids."""
        answers = [self.post() for _ in range(count)]
        refused = [answer.text for answer in answers if answer.status_code != 201]
        assert not refused
        return [answer.json()["orderId"] for answer in answers]

    def try_to_place(self, seconds: float) -> list[str]:
        """Send orders for `seconds`. Any answer is allowed. Return the ids of the accepted orders."""
        accepted: list[str] = []
        pause = threading.Event()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not pause.wait(PAUSE_SECONDS):
            try:
                answer = self.post()
            except httpx.TransportError:
                continue
            if answer.status_code == 201:
                accepted.append(answer.json()["orderId"])
        return accepted

    def read(self, order_id: str) -> httpx.Response:
        """GET the order."""
        return self._client.get(f"/orders/{order_id}")

    def cancel(self, order_id: str) -> httpx.Response:
        """Cancel the order."""
        return self._client.post(f"/orders/{order_id}/cancel")

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query, or none while Postgres does not answer."""
        try:
            return self._connected().execute(query.encode(), parameters).fetchall()
        except psycopg.OperationalError:
            return []

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.postgres_url, connect_timeout=2, autocommit=True)
        return self._connection

    def is_quiet(self) -> bool:
        """Say whether every order is settled and compensated and every event published. False without Postgres."""
        try:
            return under_way(self._connected()).is_quiet
        except psycopg.OperationalError:
            return False

    def statuses(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the status of each of these orders that exists."""
        return dict(self.rows("SELECT id, status FROM orders WHERE id = ANY(%s)", list(ids)))

    def all_confirmed(self, ids: Sequence[str], limit_seconds: float, why: str) -> None:
        """Wait until all of these orders are CONFIRMED."""
        wait_until(lambda: list(self.statuses(ids).values()).count("CONFIRMED") == len(ids), limit_seconds, why)

    def assert_promises_hold(self) -> None:
        """Wait until no work is under way, and then check every promise without a grace period."""
        wait_until(self.is_quiet, 60, "every order is settled and compensated")
        found = audit(self.postgres_url, grace_seconds=0)
        assert not any(found.values()), table(found)


@contextmanager
def disturbed_system(root: Path, **settings: str) -> Iterator[DisturbedSystem]:
    """Start a system under `root`, with stock. Its processes may die as often as a test needs."""
    with system(root) as running:
        up = running.up(RESTARTS_PER_MINUTE="1000", **settings).serves()
        running.command("stock", "set", "SKU-1", "1000000")
        target = DisturbedSystem(running, up)
        try:
            with up.process.watched("orderstream up", lambda: up.said):
                yield target
        finally:
            target.close()


@contextmanager
def placing_orders(target: DisturbedSystem, seconds: float) -> Iterator[list[str]]:
    """Place orders for `seconds` while the block runs. The list of accepted ids is complete after the block."""
    accepted: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        placing = threads.submit(target.try_to_place, seconds)
        yield accepted
        accepted += placing.result()
