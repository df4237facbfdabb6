"""A local stack with the console, the payment simulator, orders in several states, and a dead letter."""

import uuid
from typing import Any

import httpx
from confluent_kafka import Producer

from orderstream.local.processes.pids import start_time
from tests.support.simulators import Simulator
from tests.support.system import System
from tests.support.waiting import wait_until

READ_TOKEN = "a-read-only-token-of-a-test"
SETTINGS = {"REPLICAS_CONSOLE": "1", "PAYMENT_PROVIDER": "simulator", "CONSOLE_READ_TOKEN": READ_TOKEN}
SETTLE_SECONDS = 60.0
FULL_LIST = 55
"""Orders that fill the first page of the list. A list that still grows moves what is below it."""
HOSTILE = "<img src=x onerror=alert(1)>'\"&{{7*7}}"
"""A text from outside that becomes an image, a request and a dialog wherever a page does not escape it."""


class ConsoleStack:
    """The running stack, and what a client, an operator and a broken producer do with it."""

    def __init__(self, running: System) -> None:
        self.system = running
        self.url = running.urls["CONSOLE_URL"]
        self.token = (running.state.root / "operator-token").read_text().strip()
        self.simulator = Simulator(running.urls["PAYMENT_SIMULATOR_URL"])
        self.orders: dict[str, str] = {}
        """Order ids by the status that `fill` gave them."""

    def api(self, path: str, token: str | None = None) -> Any:
        """Return the answer of an operation that reads."""
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return httpx.get(f"{self.url}/api{path}", headers=headers, timeout=10).raise_for_status().json()

    def act(self, path: str, body: Any) -> Any:
        """Return the answer of an operation that acts."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.post(f"{self.url}/api{path}", headers=headers, json=body, timeout=10).raise_for_status().json()

    def place(self, sku: str = "SKU-1", user: str = "u-1") -> str:
        """Place an order and return its id."""
        line = {"sku": sku, "qty": 1, "price": "129.00"}
        body = {"userId": user, "items": [line], "amount": "129.00", "currency": "USD"}
        answer = httpx.post(f"{self.system.base_url}/orders", json=body, timeout=10)
        return str(answer.raise_for_status().json()["orderId"])

    def status(self, order_id: str) -> str:
        """Return the status of an order."""
        answer = httpx.get(f"{self.system.base_url}/orders/{order_id}", timeout=10)
        return str(answer.raise_for_status().json()["status"])

    def becomes(self, order_id: str, status: str) -> str:
        """Wait until an order has this status, and return its id."""
        wait_until(lambda: self.status(order_id) == status, SETTLE_SECONDS, f"order {order_id} becomes {status}")
        return order_id

    def stuck_order(self) -> str:
        """Place an order whose payment never gets an answer, and return its id."""
        self.simulator.change_faults(hangRate=1)
        order_id = self.place()
        self.simulator.change_faults(hangRate=0, stuckKeys=[order_id])
        return order_id

    def cancel(self, order_id: str) -> None:
        """Cancel an order as its client does."""
        httpx.post(f"{self.system.base_url}/orders/{order_id}/cancel", timeout=10).raise_for_status()

    def poison(self, value: bytes = b"{not an event", key: str | None = None) -> str:
        """Write a record that every consumer of `order.created.v1` refuses. Return its key."""
        key = key or str(uuid.uuid4())
        settings = self.system.settings
        producer = Producer({"bootstrap.servers": settings.kafka_brokers, **settings.kafka_options})
        producer.produce("order.created.v1", value, key)
        assert producer.flush(20) == 0, "Kafka did not acknowledge the record"
        return key

    def letters(self) -> Any:
        """Return the newest dead letters."""
        return self.api("/dead-letters")["letters"]

    def discard(self, letter: Any) -> None:
        """Discard a dead letter, as a script does."""
        change = {"letters": [{name: letter[name] for name in ("service", "partition", "offset")}], "note": "a test"}
        counted = self.act("/dead-letters/discard", change)
        self.act("/dead-letters/discard", {**change, "dryRun": False, "confirm": counted["confirm"]})

    def fill(self) -> None:
        """Place an order for each status, one with hostile texts, and make dead letters, one of them discarded."""
        for _ in range(FULL_LIST):
            self.place(user="u-2")
        self.orders["PROCESSING"] = self.stuck_order()
        placed = {"CONFIRMED": self.place(), "FAILED": self.place("NO-SUCH-SKU"), "CANCELLED": self.place()}
        self.cancel(placed["CANCELLED"])
        self.place(HOSTILE, HOSTILE)
        self.poison(HOSTILE.encode(), HOSTILE)
        self.poison()
        for status, order_id in placed.items():
            self.orders[status] = self.becomes(order_id, status)
        wait_until(lambda: len(self.letters()) >= 2, SETTLE_SECONDS, "the dead letters are listed")
        self.discard(self.letters()[0])

    def replaced(self, name: str, before: int) -> bool:
        """Say whether another process than the pid `before` runs as `name`."""
        child = self.system.children.get(name)
        return child is not None and child.pid != before and start_time(child.pid) == child.start_time
