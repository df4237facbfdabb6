"""A provider that does not answer, under the running services: asked again, and given up for certain (P2, P5)."""

from pathlib import Path

import httpx
import psycopg
import pytest

from orderstream.audit.check import audit
from tests.e2e.faults import ORDER
from tests.e2e.path import services
from tests.support.databases import Databases
from tests.support.servers import Servers
from tests.support.waiting import wait_until

ORDERS = 40
SETTLE_SECONDS = 60
QUICK = {"PAYMENT_RETRY_BASE_SECONDS": "0.05", "PAYMENT_RETRY_MAX_SECONDS": "1"}
_ENDS = """
SELECT o.status, o.failure_reason, o.payment, p.state, count(*)
FROM orders o LEFT JOIN payments p ON p.order_id = o.id
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2
"""
_OPEN = """
SELECT count(*) FROM orders
WHERE status IN ('PROCESSING', 'PAID')
   OR (status = 'FAILED' AND NOT (payment IN ('failed', 'voided') AND stock <> 'reserved'))
"""


def _ends(root: Path, servers: Servers, databases: Databases, **settings: str) -> list[tuple[object, ...]]:
    """Place orders, wait until they are settled and undone, and return how many ended how."""
    with services(root, servers, databases, **QUICK, **settings) as running:
        running.command("stock", "set", "SKU-1", "1000")
        with httpx.Client(base_url=running.base_url, timeout=10) as client:
            assert {client.post("/orders", json=ORDER).status_code for _ in range(ORDERS)} == {201}
        with psycopg.connect(running.postgres_url, autocommit=True) as connection:
            wait_until(lambda: connection.execute(_OPEN).fetchone() == (0,), SETTLE_SECONDS, "all settle")
            wait_until(lambda: not connection.execute("SELECT FROM outbox").fetchall(), SETTLE_SECONDS, "all is told")
            assert not any(audit(running.postgres_url, grace_seconds=0).values())
            return connection.execute(_ENDS).fetchall()


@pytest.mark.usefixtures("kafka_brokers")
def test_an_answer_to_every_second_call_is_enough(tmp_path: Path, servers: Servers, databases: Databases) -> None:
    ends = _ends(tmp_path, servers, databases, PAYMENT_THROW_RATE="0.5", PAYMENT_MAX_ATTEMPTS="20")
    assert ends == [("CONFIRMED", None, "authorized", "AUTHORIZED", ORDERS)]


@pytest.mark.usefixtures("kafka_brokers")
def test_without_any_answer_all_end_failed_and_voided(tmp_path: Path, servers: Servers, databases: Databases) -> None:
    ends = _ends(tmp_path, servers, databases, PAYMENT_THROW_RATE="1", PAYMENT_MAX_ATTEMPTS="3")
    assert ends == [("FAILED", "PROVIDER_UNAVAILABLE", "failed", "FAILED", ORDERS)]
