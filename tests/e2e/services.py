"""The five services, started by the real executable, on the shared servers of the test run, with their own database."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.local.processes.state import checkout
from tests.support.databases import Databases
from tests.support.figures import Labels, figures
from tests.support.servers import Servers
from tests.support.system import System, system
from tests.support.topics import begin_here
from tests.support.waiting import wait_until


class Services:
    """The running services, their addresses, and the commands and requests of a client."""

    def __init__(self, running: System, postgres_url: str, given: dict[str, str]) -> None:
        self.base_url = running.base_url
        self.postgres_url = postgres_url
        self.system = running
        self._given = given

    def command(self, *arguments: str) -> str:
        """Run `orderstream <arguments>` against these servers. It must exit with 0. Return its output."""
        return self.system.command(*arguments, **self._given)

    def figures(self, service: str) -> dict[tuple[str, Labels], float]:
        """Return the metrics of a service."""
        health_url = self.system.children[service].health_url
        assert health_url is not None
        return figures(httpx.get(health_url.replace("/readyz", "/metrics"), timeout=10).text)

    def read(self, order_id: str) -> httpx.Response:
        """GET the order."""
        return httpx.get(f"{self.base_url}/orders/{order_id}", timeout=10)

    def settled(self, order_id: str, limit_seconds: float = 20) -> dict[str, Any]:
        """Wait until the order is settled and return it."""

        def order() -> dict[str, Any] | None:
            answer = self.read(order_id)
            assert answer.status_code in (200, 202), answer.text
            return dict(answer.json()) if answer.status_code == 200 else None

        found = wait_until(order, limit_seconds, f"order {order_id} settles")
        assert found is not None
        return found


@contextmanager
def services(root: Path, servers: Servers, databases: Databases, **settings: str) -> Iterator[Services]:
    """Run the services until the block ends. No deadlock may happen in their database.

    Only one such system may run at a time, because it uses the real consumer groups.
    """
    for group in CONSUMER_GROUPS:
        begin_here(servers.kafka_brokers, group)
    with databases.migrated() as postgres_url:
        with system(root) as running:
            given = {**servers.environment, "POSTGRES_URL": postgres_url}
            up = running.up(**given, **settings).serves()
            with up.process.watched("orderstream up", lambda: up.said):
                yield Services(running, postgres_url, given)
        assert databases.deadlocks(postgres_url) == 0, "a deadlock: locks were taken in different orders"


def readme_block(heading: str, number: int = 0) -> str:
    """Return a bash block under a heading of the README, which readers paste; the first block has number 0."""
    text = (checkout() / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"the README has no heading {heading!r}"
    blocks: list[str] = re.findall(r"^```bash\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    assert len(blocks) > number, f"the README has no bash block {number} under {heading!r}"
    return blocks[number]
