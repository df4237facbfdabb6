"""The payment simulator as a process of a test, and the control of a running simulator."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.processes import Process
from tests.support.system import EXECUTABLE, free_port
from tests.support.waiting import wait_until

START_SECONDS = 30


class Simulator:
    """The address of a running simulator, its faults, and the calls that a provider's client makes."""

    def __init__(self, url: str) -> None:
        self.url = url

    def change_faults(self, **members: Any) -> None:
        """Change these members of its faults, for example `latencyMs`."""
        answer = httpx.patch(f"{self.url}/simulator/faults", json=members, timeout=10)
        assert answer.status_code == httpx.codes.OK, answer.text

    def authorize(self, key: str, amount: str = "129.00", currency: str = "USD") -> str:
        """Authorize a payment and return its status."""
        body = {"amount": amount, "currency": currency}
        answer = httpx.post(f"{self.url}/v1/payments", json=body, headers={"Idempotency-Key": key}, timeout=10)
        return str(answer.raise_for_status().json()["status"])

    def void(self, key: str) -> str:
        """Void a payment and return the status of the answer."""
        return str(httpx.post(f"{self.url}/v1/payments/{key}/void", timeout=10).raise_for_status().json()["status"])

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


def environment(folder: Path, port: int) -> dict[str, str]:
    """Return the environment of a simulator whose ledger is in `folder`."""
    return {"SIMULATOR_PORT": str(port), "SIMULATOR_LEDGER": str(folder / "ledger.db")}


@contextmanager
def simulator(folder: Path, faults: Mapping[str, Any] | None = None, **settings: str) -> Iterator[Simulator]:
    """Run a simulator with its ledger in `folder` until the block ends."""
    port = free_port()
    settings |= environment(folder, port) | {"SIMULATOR_FAULTS": json.dumps(dict(faults or {}))}
    with (folder / "payment-simulator.log").open("wb") as log:
        process = Process([EXECUTABLE, "payment-simulator"], env=settings, stdout=log, stderr=subprocess.STDOUT)
    running = Simulator(f"http://127.0.0.1:{port}")
    with process.watched("payment-simulator", (folder / "payment-simulator.log").read_text):
        try:
            wait_until(lambda: running.is_ready, START_SECONDS, "the simulator answers")
            yield running
        finally:
            process.terminate()
            process.ends()
