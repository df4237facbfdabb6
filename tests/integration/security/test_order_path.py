"""One order from POST to CONFIRMED while Kafka, PostgreSQL and Redis all require TLS and a password."""

import json
from pathlib import Path

import httpx

from tests.integration.security.conftest import Certificates, kafka_options, postgres_url, redis_url_of
from tests.support.system import system
from tests.support.waiting import wait_until

ORDER = {"userId": "u-1", "items": [{"sku": "SKU-1", "qty": 1, "price": 129.0}], "amount": 129.0, "currency": "USD"}


def test_an_order_is_confirmed_and_cached_over_secured_connections(
    tmp_path: Path, secured_brokers: str, secured_database: str, secured_redis: str, certificates: Certificates
) -> None:
    given = {
        "POSTGRES_URL": postgres_url(secured_database, certificates.trusted),
        "REDIS_URL": redis_url_of(secured_redis, certificates.trusted),
        "KAFKA_BROKERS": secured_brokers,
        "KAFKA_OPTIONS": json.dumps(kafka_options(certificates.trusted)),
        "CACHE_BUDGET_SECONDS": "2",
    }
    with system(tmp_path) as made:
        made.up(**given).serves()
        posted = httpx.post(f"{made.base_url}/orders", json=ORDER, timeout=10)
        assert posted.status_code == 201, posted.text
        url = f"{made.base_url}/orders/{posted.json()['orderId']}"
        wait_until(lambda: httpx.get(url, timeout=10).status_code == 200, 30, "the order settles")
        wait_until(lambda: httpx.get(url, timeout=10).headers["X-Cache"] == "HIT", 10, "the order is cached")
        assert httpx.get(url, timeout=10).json()["status"] == "CONFIRMED"
