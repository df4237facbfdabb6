"""Faults of Postgres and Valkey: accepted orders are kept, and the API answers what it still can (P1, P8, P11)."""

import signal
import time
from collections.abc import Iterator

import pytest

from orderstream.api_gateway.session import BUDGET_SECONDS
from tests.e2e.disturbed import DisturbedSystem, disturbed_system, placing_orders
from tests.support.faults import kill, paused, restart_postgres
from tests.support.waiting import wait_until

BACK_SECONDS = 30
SETTLE_SECONDS = 20
"""Half of this is for a busy machine."""
CACHED_SECONDS = 15
"""If Valkey gets no CPU within the budget of the cache, the gateway asks it again a second later."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DisturbedSystem]:
    """One system for all tests of this module."""
    with disturbed_system(tmp_path_factory.mktemp("stores")) as running:
        yield running


@pytest.fixture
def services(target: DisturbedSystem) -> Iterator[DisturbedSystem]:
    """The system. After the test, no service may have been restarted, and every promise must hold."""
    before = target.system.service_pids()
    yield target
    target.assert_promises_hold()
    assert target.system.service_pids() == before, "a service was restarted"


def _cached(services: DisturbedSystem) -> str:
    """Place an order, read it until the cache has it, and return its id."""
    (order_id,) = services.place(1)
    wait_until(lambda: services.read(order_id).headers["X-Cache"] == "HIT", SETTLE_SECONDS, "the order is cached")
    return order_id


def _is_read_from_cache(services: DisturbedSystem, order_id: str) -> bool:
    answer = services.read(order_id)
    return (answer.status_code, answer.headers.get("X-Cache")) == (200, "HIT")


def test_while_postgres_hangs_new_orders_get_503_in_time_and_cached_orders_are_read(services: DisturbedSystem) -> None:
    order_id = _cached(services)
    with paused(services.system, "postgres"):
        began = time.monotonic()
        answer = services.post()
        assert time.monotonic() - began < BUDGET_SECONDS + 6
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        wait_until(lambda: _is_read_from_cache(services, order_id), CACHED_SECONDS, "the cached order is read")
    wait_until(lambda: services.post().status_code == 201, BACK_SECONDS, "orders are accepted again")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "restarted"])
def test_accepted_orders_survive_the_end_of_postgres(services: DisturbedSystem, end: signal.Signals) -> None:
    before = services.system.pid("postgres")
    with placing_orders(services, 5) as accepted:
        if end is signal.SIGKILL:
            kill(services.system, "postgres")
        else:
            restart_postgres(services.system)
        wait_until(lambda: services.system.is_back("postgres", before), BACK_SECONDS, "Postgres is restarted")
    wait_until(lambda: services.post().status_code == 201, BACK_SECONDS, "orders are accepted again")
    assert accepted
    services.all_confirmed(accepted, SETTLE_SECONDS, "the orders are confirmed soon")


def test_orders_are_placed_and_read_without_valkey(services: DisturbedSystem) -> None:
    order_id, before = _cached(services), services.system.pid("valkey")
    kill(services.system, "valkey")
    placed = services.place(5)
    assert services.read(order_id).status_code == 200
    services.all_confirmed(placed, SETTLE_SECONDS, "the orders are confirmed soon")
    wait_until(lambda: services.system.is_back("valkey", before), BACK_SECONDS, "Valkey is restarted")
    assert _cached(services)


def test_a_change_while_valkey_hangs_is_read_afterwards(services: DisturbedSystem) -> None:
    order_id = _cached(services)
    with paused(services.system, "valkey"):
        placed = services.place(5)
        services.all_confirmed(placed, SETTLE_SECONDS, "the orders are confirmed soon")
        assert services.cancel(order_id).status_code == 202
        assert services.read(order_id).json()["status"] == "CANCELLED"
    seen = {services.read(order_id).json()["status"] for _ in range(50)}
    assert seen == {"CANCELLED"}
    wait_until(lambda: services.read(order_id).headers["X-Cache"] == "HIT", SETTLE_SECONDS, "it is cached again")
    assert services.read(order_id).json()["status"] == "CANCELLED"
