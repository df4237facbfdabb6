"""Postgres and Valkey killed, paused and restarted: what was promised stays, and what can go on does (P1, P8, P11)."""

import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from orderstream.api_gateway.session import BUDGET_SECONDS
from tests.e2e.faults import Harmed, harmed, orders_flowing
from tests.support.waiting import wait_until

BACK_SECONDS = 30
SETTLE_SECONDS = 20
"""Half of it is for a busy machine."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harmed]:
    """One stack for all of these."""
    with harmed(tmp_path_factory.mktemp("stores")) as running:
        yield running


@pytest.fixture
def services(target: Harmed) -> Iterator[Harmed]:
    """The stack, whose services must be the same processes after the test as before, and whose books must balance."""
    before = target.pids()
    yield target
    target.balanced()
    assert target.pids() == before, "a service was restarted"


def _cached(services: Harmed) -> str:
    """Place an order and read it until the cache has it; returns its id."""
    (order_id,) = services.place(1)
    wait_until(lambda: services.read(order_id).headers["X-Cache"] == "HIT", SETTLE_SECONDS, "the order is cached")
    return order_id


def _cancel(services: Harmed, order_id: str) -> int:
    return httpx.post(f"{services.base_url}/orders/{order_id}/cancel", timeout=15).status_code


def test_while_postgres_hangs_orders_are_refused_in_time_and_cached_ones_read(services: Harmed) -> None:
    order_id = _cached(services)
    with services.paused("postgres"):
        began = time.monotonic()
        answer = services.post()
        assert time.monotonic() - began < BUDGET_SECONDS + 3
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        read = services.read(order_id)
        assert (read.status_code, read.headers["X-Cache"]) == (200, "HIT")
    wait_until(lambda: services.post().status_code == 201, BACK_SECONDS, "orders are accepted again")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "restarted"])
def test_nothing_that_was_accepted_is_lost_with_postgres(services: Harmed, end: signal.Signals) -> None:
    before = services.pid("postgres")
    with orders_flowing(services, 5) as flowing:
        if end is signal.SIGKILL:
            services.kill("postgres")
        else:
            os.kill(before, end)
        wait_until(lambda: services.is_back("postgres", before), BACK_SECONDS, "Postgres is started again")
    wait_until(lambda: services.post().status_code == 201, BACK_SECONDS, "orders are accepted again")
    assert flowing
    services.all_confirmed(flowing, SETTLE_SECONDS, "all settle soon")


def test_nothing_is_missed_of_a_killed_valkey(services: Harmed) -> None:
    order_id, before = _cached(services), services.pid("valkey")
    services.kill("valkey")
    placed = services.place(5)
    assert services.read(order_id).status_code == 200
    services.all_confirmed(placed, SETTLE_SECONDS, "all settle soon")
    wait_until(lambda: services.is_back("valkey", before), BACK_SECONDS, "Valkey is started again")
    assert _cached(services)


def test_what_changed_while_valkey_hung_is_read_as_it_is_afterwards(services: Harmed) -> None:
    order_id = _cached(services)
    with services.paused("valkey"):
        placed = services.place(5)
        services.all_confirmed(placed, SETTLE_SECONDS, "all settle soon")
        assert _cancel(services, order_id) == 202
        assert services.read(order_id).json()["status"] == "CANCELLED"
    seen = {services.read(order_id).json()["status"] for _ in range(50)}
    assert seen == {"CANCELLED"}
    wait_until(lambda: services.read(order_id).headers["X-Cache"] == "HIT", SETTLE_SECONDS, "it is cached again")
    assert services.read(order_id).json()["status"] == "CANCELLED"
