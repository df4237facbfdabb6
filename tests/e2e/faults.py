"""A whole stack of a test's own to do harm to: its supervisor starts again what dies, as an operator's would."""

import signal
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
from orderstream.local.processes.pids import signal_tree, start_time
from orderstream.local.processes.service import healthy
from orderstream.local.servers import server_home
from orderstream.local.stack_settings import stack_addresses
from orderstream.postgres.connect import Connection
from orderstream.settings import SERVICES, Settings
from tests.e2e.stack import Stack, Up, stack
from tests.load.soak.faults import empty
from tests.support.waiting import wait_until

ORDER = {"userId": "u-1", "items": [{"sku": "SKU-1", "qty": 1, "price": 1}], "amount": 1, "currency": "USD"}
PACE_SECONDS = 0.02


class Harmed:
    """A running stack, what can be done to it, and how it must come out."""

    def __init__(self, made: Stack, up: Up) -> None:
        run = made.state.running()
        assert run is not None
        self.postgres_url = run.urls["POSTGRES_URL"]
        self.redis_url = run.urls["REDIS_URL"]
        self.settings = Settings.model_validate(stack_addresses(run.urls))
        self.base_url = made.base_url
        self.up = up
        self.stack = made
        self._connection: Connection | None = None
        self._client = httpx.Client(base_url=made.base_url, timeout=15)

    def close(self) -> None:
        """Close what was opened to look at it."""
        self._client.close()
        if self._connection is not None:
            self._connection.close()

    def pid(self, name: str) -> int:
        """The pid of a process that lives."""
        child = self.stack.children[name]
        assert start_time(child.pid) == child.start_time, f"{name} is not running"
        return child.pid

    def pids(self) -> dict[str, int]:
        """The pids of all replicas of the five services."""
        return {name: one.pid for name, one in self.stack.children.items() if name.startswith(SERVICES)}

    def kill(self, *names: str) -> None:
        """`kill -9` them, with every process they have started."""
        for pid in [self.pid(name) for name in names]:
            signal_tree(pid, signal.SIGKILL)

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Leave a process alive and silent until the block ends."""
        pid = self.pid(name)
        signal_tree(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            signal_tree(pid, signal.SIGCONT)

    def is_back(self, name: str, before: int) -> bool:
        """Say whether another process has taken the place of `before`."""
        child = self.stack.children.get(name)
        return child is not None and child.pid != before and start_time(child.pid) == child.start_time

    def serves(self, name: str) -> bool:
        """Say whether a service says of itself that it can work."""
        child = self.stack.children.get(name)
        return child is not None and child.health_url is not None and healthy(child.health_url)

    def wipe_kafka(self) -> None:
        """Empty Kafka's data directory and kill it, so that its next start finds nothing of what it knew."""
        empty(server_home.of(self.stack.state).folder("kafka") / "data")
        self.kill("kafka")

    def post(self, **headers: str) -> httpx.Response:
        """Place an order that nothing is wrong with."""
        return self._client.post("/orders", json=ORDER, headers=headers)

    def place(self, count: int) -> list[str]:
        """Place so many orders, one after the other, each of which must be accepted; returns their ids."""
        answers = [self.post() for _ in range(count)]
        assert {one.status_code for one in answers} == {201}, [one.text for one in answers if one.status_code != 201]
        return [one.json()["orderId"] for one in answers]

    def try_to_place(self, seconds: float) -> list[str]:
        """Keep placing orders for so long, whatever the answers are; returns the ids of those that were accepted."""
        accepted: list[str] = []
        pace = threading.Event()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not pace.wait(PACE_SECONDS):
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

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask Postgres; nothing while it is away."""
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
        """The status of each order that is there."""
        return dict(self.rows("SELECT id, status FROM orders WHERE id = ANY(%s)", list(ids)))

    def all_confirmed(self, ids: Sequence[str], limit_seconds: float, why: str) -> None:
        """Wait until every one of these orders is CONFIRMED."""
        wait_until(lambda: list(self.statuses(ids).values()).count("CONFIRMED") == len(ids), limit_seconds, why)

    def balanced(self) -> None:
        """Wait until nothing is under way; then every promise must hold, without any allowance."""
        wait_until(self.is_quiet, 60, "everything settles and is compensated")
        found = audit(self.postgres_url, grace_seconds=0)
        assert not any(found.values()), table(found)


@contextmanager
def harmed(root: Path, **settings: str) -> Iterator[Harmed]:
    """A stack under `root`, with stock, that may die as often as a test likes."""
    with stack(root) as made:
        running = made.up(RESTARTS_PER_MINUTE="1000", **settings).serves()
        answer = made.run("stock", "set", "SKU-1", "1000000")
        assert answer.returncode == 0, answer.stderr
        target = Harmed(made, running)
        try:
            with running.process.watched("orderstream up", lambda: running.said):
                yield target
        finally:
            target.close()


@contextmanager
def orders_flowing(target: Harmed, seconds: float) -> Iterator[list[str]]:
    """Place orders beside the block for so long; the list is complete when the block has ended."""
    accepted: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        flowing = threads.submit(target.try_to_place, seconds)
        yield accepted
        accepted += flowing.result()
