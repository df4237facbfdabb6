"""Faults of the payment provider, switched on and off at random while a soak runs. P2 must survive all of them.

The provider is the payment simulator. Its ledger says at the end what was charged.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx
from msgspec import Struct

from tests.support import faults
from tests.support.system import System

SIMULATOR = "payment-simulator"
PENDING_LIMIT_MINUTES = 0.25
"""PAYMENT_PENDING_LIMIT_MINUTES of a soak."""
NEVER_DECIDED_SECONDS = 3_600
PERIOD_MAX_SECONDS = 8.0
"""The longest time between the beginnings of two faults."""
ON_SHARE = (0.3, 0.8)
"""A fault lasts a random share of its period."""
CHANGE_SECONDS = 60.0
"""Time in which the simulator must take a change of its faults. It may be restarting."""
_POLL_SECONDS = 0.1

NONE: dict[str, Any] = {
    "latencyMs": 20, "latencyDistribution": "lognormal", "latencyP99Ms": 200, "declineRate": 0.05,
    "refuseRate": 0, "retryAfterSeconds": 1, "errorBeforeRate": 0, "errorAfterRate": 0, "dropAfterRate": 0,
    "hangRate": 0, "pendingRate": 0, "pendingSeconds": 3, "down": False,
}  # fmt: skip
"""The simulator without a fault: quick, and it declines one order in twenty."""


class Fault(Struct, frozen=True):
    """Members of the simulator's faults that differ from `NONE`, and whether its process is killed or paused."""

    members: dict[str, Any] = {}
    kills: bool = False
    pauses: bool = False


FAULTS: Mapping[str, Fault] = {
    "slow, some calls beyond their time limit": Fault({"latencyMs": 400, "latencyP99Ms": 8_000}),
    "429 for a third of the calls": Fault({"refuseRate": 0.33, "retryAfterSeconds": 2}),
    "500 before the charge": Fault({"errorBeforeRate": 0.3}),
    "500 after the charge": Fault({"errorAfterRate": 0.3}),
    "connection dropped after the charge": Fault({"dropAfterRate": 0.3}),
    "calls that are never answered": Fault({"hangRate": 0.2}),
    "pending, decided after seconds": Fault({"pendingRate": 0.3, "pendingSeconds": 3}),
    "pending beyond the limit": Fault({"pendingRate": 0.1, "pendingSeconds": NEVER_DECIDED_SECONDS}),
    "503 for every call": Fault({"down": True}),
    "kill -9": Fault(kills=True),
    "paused": Fault(pauses=True),
    "all kinds at once": Fault(
        {
            "latencyMs": 100, "latencyP99Ms": 2_000, "refuseRate": 0.1, "errorBeforeRate": 0.1, "errorAfterRate": 0.1,
            "dropAfterRate": 0.1, "hangRate": 0.05, "pendingRate": 0.1,
        }
    ),
    "kill -9 while it drops and fails": Fault({"errorAfterRate": 0.3, "dropAfterRate": 0.3}, kills=True),
}  # fmt: skip


class ProviderFaults:
    """Causes one fault after the other, in a random order, until it is stopped. Uses one thread."""

    def __init__(self, system: System, seconds: float, chance: random.Random) -> None:
        """Within `seconds`, every fault happens at least once."""
        self.caused: Counter[str] = Counter()
        self._system = system
        self._url = f"{system.urls['PAYMENT_SIMULATOR_URL']}/simulator/faults"
        self._period_seconds = min(PERIOD_MAX_SECONDS, seconds / (len(FAULTS) + 1))
        self._chance = chance
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End the current fault and `run`."""
        self._stopped.set()

    def run(self) -> None:
        """Cause faults until `stop`, and then leave the provider without one. Raises TimeoutError."""
        while not self._stopped.is_set():
            for name in self._chance.sample(list(FAULTS), len(FAULTS)):
                if not self._stopped.is_set():
                    self.caused[name] += 1
                    self._cause(FAULTS[name])
        self.change(NONE)

    def _cause(self, fault: Fault) -> None:
        on_seconds = self._period_seconds * self._chance.uniform(*ON_SHARE)
        self.change(NONE | fault.members)
        if fault.kills:
            self._stopped.wait(on_seconds / 2)
            self._system.await_restart(SIMULATOR)
            faults.kill(self._system, SIMULATOR)
        if fault.pauses:
            with faults.paused(self._system, SIMULATOR):
                self._stopped.wait(on_seconds)
        else:
            self._stopped.wait(on_seconds)
        self.change(NONE)
        self._stopped.wait(self._period_seconds - on_seconds)

    def change(self, members: Mapping[str, Any]) -> None:
        """Change the faults of the simulator, also if it is restarting. Raises TimeoutError."""
        deadline = time.monotonic() + CHANGE_SECONDS
        while True:
            try:
                answer = httpx.patch(self._url, json=members, timeout=5)
            except httpx.TransportError as error:
                problem = repr(error)
            else:
                assert answer.status_code == httpx.codes.OK, answer.text
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"the simulator did not take its faults within {CHANGE_SECONDS:.0f} s: {problem}")
            time.sleep(_POLL_SECONDS)
