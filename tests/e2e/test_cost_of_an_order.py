"""What one order costs in statements, round trips, requests to Kafka and WAL, and what an idle system does.

These counters do not depend on the speed of the machine. docs/performance.md shows the cost of an order line by line.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest
from msgspec import Struct

from orderstream.settings import SERVICES
from tests.support.order_costs import FASTER_THAN_ANSWERED, Counts, metered

WARM_UP, PACED, BURST = 500, 200, 4_000
"""Orders of each phase."""
RATE = 40
IDLE_WINDOWS, HEARTBEATS = 6, 4
"""An idle system is watched for several windows. In each window, the broker sends some heartbeats, two per second."""

IDLE_STATEMENTS = {"outbox-relay": 11, "payment-worker": 13, "order-service": 12}
IDLE_REQUESTS = {"outbox-relay": 1, "payment-worker": 13, "inventory-worker": 5, "order-service": 6}
IDLE_WAKE_UPS = {
    "api-gateway": 6,
    "outbox-relay": 35,
    "payment-worker": 75,
    "inventory-worker": 40,
    "order-service": 60,
}
"""Limits for each second of the quietest window, about 1.5 times what was measured. A process that is not named has 0.

A timer that polls every 0.1 s adds 10. A sweep of a timer, which comes every 10 s, is in few of the windows.
"""


class Measured(Struct, frozen=True):
    """What each phase used."""

    idle: Sequence[Counts]
    paced: Counts
    burst: Counts


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """One system with counters: idle, with 40 orders/s, and with as many orders as it takes."""
    with metered(tmp_path_factory.mktemp("cost")) as meter:
        meter.placed(FASTER_THAN_ANSWERED, WARM_UP)
        idle = [meter.idle(HEARTBEATS) for _ in range(IDLE_WINDOWS)]
        return Measured(idle, meter.placed(RATE, PACED), meter.placed(FASTER_THAN_ANSWERED, BURST))


def _above(limits: Mapping[str, float], counts: Mapping[str, float], per: float) -> dict[str, float]:
    """Return the counts that exceed the limit of their process, for each second or order."""
    return {name: number / per for name, number in counts.items() if number / per > limits.get(name, 0)}


def _quietest(windows: Sequence[Counts], kind: Callable[[Counts], Counter[str]]) -> dict[str, float]:
    """Return the counts of each process per second, of the window in which it had the fewest."""
    names = {name for window in windows for name in kind(window)}
    return {name: min(kind(window)[name] / (window.heartbeats / 2) for window in windows) for name in names}


def test_every_process_is_counted(measured: Measured) -> None:
    """Otherwise a process whose statements or requests are not seen would keep all limits."""
    clients = set(SERVICES) - {"api-gateway"}
    assert {name for name, number in measured.paced.statements.items() if number > PACED / 5} == set(SERVICES)
    assert {name for name, number in measured.paced.requests.items() if number > PACED / 5} == clients
    assert measured.paced.wal_bytes > PACED * 1_000


def test_an_idle_system_asks_little(measured: Measured) -> None:
    """No timer polls for work: an idle process asks PostgreSQL and Kafka a few times per second."""
    assert _above(IDLE_STATEMENTS, _quietest(measured.idle, lambda idle: idle.statements), 1) == {}
    assert _above(IDLE_REQUESTS, _quietest(measured.idle, lambda idle: idle.requests), 1) == {}
    assert _above(IDLE_WAKE_UPS, _quietest(measured.idle, lambda idle: idle.wake_ups), 1) == {}


def test_an_order_at_40_per_second_costs_few_statements_and_requests(measured: Measured) -> None:
    """A process that has an order to itself runs every statement of a batch for it, and no more."""
    paced = measured.paced
    assert sum(paced.statements.values()) / PACED < 24
    assert sum(paced.round_trips.values()) / PACED < 24
    assert sum(paced.requests.values()) / PACED < 12
    assert paced.wal_bytes / PACED < 4_000


def test_many_orders_share_statements_and_requests(measured: Measured) -> None:
    """A statement for each order in any process would add 1 to its figure."""
    burst = measured.burst
    limits = dict.fromkeys(SERVICES, 0.25)
    assert _above(limits, burst.statements, BURST) == {}
    assert _above(limits, burst.round_trips, BURST) == {}
    assert _above(limits, burst.requests, BURST) == {}
    assert burst.wal_bytes / BURST < 3_000
