"""`orderstream up` with PAYMENT_PROVIDER=simulator: the whole stack pays at a provider that has its own ledger (P2)."""

import json
import os
import signal
from pathlib import Path

import httpx
import pytest

from orderstream.local.banner import curl_lines
from tests.support.shell import paste
from tests.support.simulators import Simulator
from tests.support.system import RESTART_SECONDS, System, system
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)


def confirmed_order(running: System) -> str:
    """Place the order of the banner, wait until it is CONFIRMED, and return its id."""
    order_id: str = json.loads(paste(curl_lines(running.base_url)).strip().splitlines()[-1])["orderId"]

    def is_confirmed() -> bool:
        answer = httpx.get(f"{running.base_url}/orders/{order_id}", timeout=10)
        return answer.is_success and answer.json()["status"] == "CONFIRMED"

    wait_until(is_confirmed, 60, f"order {order_id} is CONFIRMED")
    return order_id


def charged(simulator: Simulator, order_id: str) -> tuple[int, str, str]:
    """Return the number of charges, the amount that is held, and its currency."""
    payment = httpx.get(f"{simulator.url}/v1/payments/{order_id}", timeout=10).json()
    return payment["charges"], payment["held"], payment["currency"]


def test_the_ledger_of_the_simulator_holds_the_charge_of_each_order(tmp_path: Path) -> None:
    with system(tmp_path) as running:
        up = running.up(PAYMENT_PROVIDER="simulator").serves()
        simulator = Simulator(running.urls["PAYMENT_SIMULATOR_URL"])
        assert f"export PAYMENT_SIMULATOR_URL={simulator.url}\n" in running.command("env") + "\n"
        assert f"{simulator.url}/readyz" in running.command("status")
        first = confirmed_order(running)
        assert charged(simulator, first) == (1, "129.00", "USD")

        before = running.pid("payment-simulator")
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: running.is_back("payment-simulator", before), RESTART_SECONDS, "the simulator is restarted")
        wait_until(lambda: simulator.is_ready, RESTART_SECONDS, "the simulator answers")
        assert charged(simulator, first) == (1, "129.00", "USD")
        assert charged(simulator, confirmed_order(running)) == (1, "129.00", "USD")
        assert "ok" in running.command("audit", "--grace", "0")

        running.command("down")
        assert up.ends() == 0
        assert running.state.payment_ledger.exists()
        running.command("reset")
        assert not running.state.payment_ledger.parent.exists()
