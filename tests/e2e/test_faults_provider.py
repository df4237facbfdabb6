"""A payment provider that does not answer: the attempts are retried, and end after the last one (P2, P5)."""

from pathlib import Path

import httpx
import psycopg
import pytest

from orderstream.audit.check import audit
from orderstream.audit.under_way import under_way
from tests.e2e.disturbed import ORDER
from tests.e2e.services import services
from tests.support.databases import Databases
from tests.support.servers import Servers
from tests.support.waiting import wait_until

ORDERS = 40
SETTLE_SECONDS = 60
QUICK = {"PAYMENT_RETRY_BASE_SECONDS": "0.05", "PAYMENT_RETRY_MAX_SECONDS": "1"}
_OUTCOMES = """
SELECT o.status, o.failure_reason, o.payment, p.state, count(*)
FROM orders o LEFT JOIN payments p ON p.order_id = o.id
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2
"""


def _outcomes(root: Path, servers: Servers, databases: Databases, **settings: str) -> list[tuple[object, ...]]:
    """Place orders, wait until they are settled and compensated, and return the number of each outcome."""
    with services(root, servers, databases, **QUICK, **settings) as running:
        running.command("stock", "set", "SKU-1", "1000")
        with httpx.Client(base_url=running.base_url, timeout=10) as client:
            assert {client.post("/orders", json=ORDER).status_code for _ in range(ORDERS)} == {201}
        with psycopg.connect(running.postgres_url, autocommit=True) as connection:
            wait_until(lambda: under_way(connection).is_quiet, SETTLE_SECONDS, "every order is settled and compensated")
            assert not any(audit(running.postgres_url, grace_seconds=0).values())
            return connection.execute(_OUTCOMES).fetchall()


@pytest.mark.usefixtures("kafka_brokers")
def test_orders_are_confirmed_if_the_provider_leaves_half_of_the_calls_unanswered(
    tmp_path: Path, servers: Servers, databases: Databases
) -> None:
    outcomes = _outcomes(tmp_path, servers, databases, PAYMENT_THROW_RATE="0.5", PAYMENT_MAX_ATTEMPTS="20")
    assert outcomes == [("CONFIRMED", None, "authorized", "AUTHORIZED", ORDERS)]


@pytest.mark.usefixtures("kafka_brokers")
def test_if_the_provider_never_answers_every_order_fails(
    tmp_path: Path, servers: Servers, databases: Databases
) -> None:
    outcomes = _outcomes(tmp_path, servers, databases, PAYMENT_THROW_RATE="1", PAYMENT_MAX_ATTEMPTS="3")
    assert outcomes == [("FAILED", "PROVIDER_UNAVAILABLE", "failed", "FAILED", ORDERS)]
