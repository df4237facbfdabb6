"""The five services through the real executable, on the servers of the whole run and a database of their own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.local.processes.state import checkout
from tests.e2e.stack import Stack, stack
from tests.support.databases import Databases
from tests.support.figures import Labels, figures
from tests.support.servers import Servers
from tests.support.topics import begin_here
from tests.support.waiting import wait_until


class Services:
    """A running stack, where it is, and what it says of an order."""

    def __init__(self, made: Stack, postgres_url: str, given: dict[str, str]) -> None:
        self.base_url = made.base_url
        self.postgres_url = postgres_url
        self._stack = made
        self._given = given

    def command(self, *arguments: str) -> str:
        """Run `orderstream <arguments>` against these servers and return what it prints."""
        answer = self._stack.run(*arguments, **self._given)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def figures(self, service: str) -> dict[tuple[str, Labels], float]:
        """Ask a service for its figures, where `orderstream status` asks for its health."""
        health_url = self._stack.children[service].health_url
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

        found = wait_until(order, limit_seconds, f"order {order_id} does not settle")
        assert found is not None
        return found


@contextmanager
def services(root: Path, servers: Servers, databases: Databases, **settings: str) -> Iterator[Services]:
    """Run the services until the block ends; no deadlock may happen.

    Run one at a time: their consumer groups are the real ones.
    """
    for group in CONSUMER_GROUPS:
        begin_here(servers.kafka_brokers, group)
    with databases.migrated() as postgres_url:
        with stack(root) as made:
            given = {**servers.environment, "POSTGRES_URL": postgres_url}
            up = made.up(**given, **settings).serves()
            with up.process.watched("orderstream up", lambda: up.said):
                yield Services(made, postgres_url, given)
        assert databases.deadlocks(postgres_url) == 0, "a deadlock: locks were taken in different orders"


def readme_block(heading: str, number: int = 0) -> str:
    """Return a bash block under a heading of the README, which readers paste; the first block has number 0."""
    text = (checkout() / "README.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"the README has no heading {heading!r}"
    blocks: list[str] = re.findall(r"^```bash\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    assert len(blocks) > number, f"the README has no bash block {number} under {heading!r}"
    return blocks[number]
