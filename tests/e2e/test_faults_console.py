"""The console is killed, stopped and loses its rights while orders flow: nothing happens to orders."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psycopg
import pytest

from orderstream.local.operator_token import read_or_make
from tests.e2e.disturbed import DisturbedSystem, disturbed_system, placing_orders
from tests.support.faults import kill, paused
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)

READERS = 2
ADDRESSES = ("/", "/orders", "/api/orders", "/api/flow", "/dead-letters", "/topics", "/stock")


def operator(target: DisturbedSystem) -> httpx.Client:
    """Return a client of the console with the operator's token."""
    headers = {"authorization": f"Bearer {read_or_make(target.system.state)}"}
    return httpx.Client(base_url=target.system.urls["CONSOLE_URL"], headers=headers, timeout=10, trust_env=False)


@contextmanager
def readers(target: DisturbedSystem) -> Iterator[None]:
    """Load pages of the console without a pause until the block ends. Any answer is allowed."""
    over = threading.Event()

    def read() -> None:
        with operator(target) as client:
            while not over.is_set():
                for address in ADDRESSES:
                    with contextlib.suppress(httpx.HTTPError):
                        client.get(address)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(20)


def status(target: DisturbedSystem, address: str) -> int | None:
    """Return the status that the console answers, or None if it does not answer."""
    try:
        with operator(target) as client:
            return client.get(address).status_code
    except httpx.HTTPError:
        return None


def test_orders_go_on_while_the_console_is_killed_stopped_and_without_rights(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with disturbed_system(tmp_path_factory.mktemp("console"), REPLICAS_CONSOLE="1") as target:
        system = target.system
        before = system.service_pids()
        assert status(target, "/api/orders") == 200
        with psycopg.connect(system.superuser_url, autocommit=True) as superuser, readers(target):
            with placing_orders(target, 1) as killed:
                pid = system.pid("console")
                kill(system, "console")
            with placing_orders(target, 1) as meanwhile:
                wait_until(lambda: system.is_back("console", pid), 90, "the console is restarted")
            wait_until(lambda: status(target, "/api/orders") == 200, 90, "the console answers again")
            with paused(system, "console"), placing_orders(target, 1) as stopped:
                assert status(target, "/api/orders") is None
            superuser.execute("ALTER ROLE console NOLOGIN")
            superuser.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'console'")
            with placing_orders(target, 1) as without_rights:
                wait_until(lambda: status(target, "/api/orders") == 503, 90, "the console says that it cannot read")
            superuser.execute("ALTER ROLE console LOGIN")
            wait_until(lambda: status(target, "/api/orders") == 200, 90, "the console reads again")
        placed = [*killed, *meanwhile, *stopped, *without_rights]
        assert all((killed, meanwhile, stopped, without_rights)), "orders were accepted all the time"
        target.all_confirmed(placed, 30, "the orders are confirmed")
        assert system.service_pids() == before, "a service was restarted"
        assert "console is back" in target.up.said
        target.assert_promises_hold()
