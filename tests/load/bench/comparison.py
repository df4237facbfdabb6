"""One run of a contestant of `make bench`: the same phases and the same checks for each of them."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import psycopg
from msgspec import Struct

from orderstream.audit.check import audit
from tests.load.bench import contestants, counters
from tests.load.bench.peers.contestant import Contestant, Running
from tests.load.bench.results import Figures
from tests.load.bench.smoke import await_quiet
from tests.load.bench.target import Phase, Target
from tests.load.system import say

RATES = (40, 200)
HEADROOM = 1.2
"""A rate is only tried if the contestant settled this many times more orders per second in the saturated phase."""


class Plan(Struct, frozen=True):
    """How long the phases are, in seconds. Java needs the longer warm-up."""

    warm_up_seconds: float
    warm_up_seconds_java: float
    saturated_seconds: float
    paced_seconds: float
    settle_limit_seconds: float
    runs: int


FULL = Plan(
    warm_up_seconds=8,
    warm_up_seconds_java=15,
    saturated_seconds=12,
    paced_seconds=10,
    settle_limit_seconds=60,
    runs=3,
)
QUICK = Plan(
    warm_up_seconds=5,
    warm_up_seconds_java=10,
    saturated_seconds=6,
    paced_seconds=4,
    settle_limit_seconds=20,
    runs=1,
)


def run(name: str, folder: Path, plan: Plan) -> Figures:
    """Start a contestant with empty data, measure it, and end it. A contestant that fails does not raise an error."""
    try:
        contestant = contestants.contestant(name)
        with contestant.running(folder) as running, _connected(running) as connection:
            return _measure(name, contestant, Target(running, connection, contestant.connections), plan)
    except Exception as error:  # noqa: BLE001 - a contestant may fail in any way, and the others go on
        say(f"{name} failed: {error!r}")
        return Figures(contestant=name, failure=f"{type(error).__name__}: {error}"[:500])


@contextlib.contextmanager
def _connected(running: Running) -> Iterator[psycopg.Connection]:
    with psycopg.connect(running.postgres_url, autocommit=True) as connection:
        connection.execute("SET statement_timeout = 0")
        yield connection


def _measure(name: str, contestant: Contestant, target: Target, plan: Plan) -> Figures:
    values: dict[str, float] = {}
    cpu_us: dict[str, dict[str, float]] = {}
    target.stock()
    warm_up_seconds = plan.warm_up_seconds_java if contestant.has_java else plan.warm_up_seconds
    say(f"{contestant.name}: warming up for {warm_up_seconds:g} s")
    target.saturate("bench-warm-up", warm_up_seconds, in_flight=contestant.in_flight)
    say(f"{contestant.name}: as many orders as it settles, for {plan.saturated_seconds:g} s")
    saturated = target.saturate(
        "bench-saturated",
        plan.saturated_seconds,
        in_flight=contestant.in_flight,
        limit_seconds=plan.settle_limit_seconds,
    )
    memory = counters.memory_mib(target.running.processes())
    values |= {"settled_per_second": saturated.settled_per_second, **_of_phase(saturated, "saturated")}
    values |= {"memory_mib": sum(memory.values())} if memory else {}
    cpu_us["saturated"] = saturated.cpu_us
    for rate in RATES:
        if saturated.settled_per_second < HEADROOM * rate:
            say(f"{contestant.name}: cannot settle {rate} orders/s")
            continue
        say(f"{contestant.name}: {rate} orders/s for {plan.paced_seconds:g} s")
        paced = target.pace(f"bench-{rate}", rate, plan.paced_seconds, limit_seconds=plan.settle_limit_seconds)
        values |= _of_phase(paced, str(rate))
        cpu_us[str(rate)] = paced.cpu_us
    problems = target.check()
    if name == contestants.OURS:
        problems += audited(target)
    # JSON has no NaN. A figure that could not be measured is missing.
    values = {figure: value for figure, value in values.items() if not math.isnan(value)}
    return Figures(contestant=name, values=values, cpu_us=cpu_us, problems=problems)


def _of_phase(phase: Phase, name: str) -> dict[str, float]:
    """Return the figures of a phase, by their names in the result."""
    orders = max(1, phase.settled)
    post = phase.report.latency_ms
    return {
        f"settle_p50_ms_{name}": phase.settle_ms[0],
        f"settle_p99_ms_{name}": phase.settle_ms[1],
        f"post_p50_ms_{name}": post[0],
        f"post_p99_ms_{name}": post[2],
        f"post_p999_ms_{name}": post[3],
        f"cpu_us_{name}": sum(phase.cpu_us.values()),
        f"load_cpu_us_{name}": phase.report.cpu_seconds / orders * 1e6,
        f"wal_bytes_{name}": phase.used.wal_bytes / orders,
        f"transactions_{name}": phase.used.transactions / orders,
        f"fsyncs_{name}": phase.used.fsyncs / orders,
        f"late_p99_ms_{name}": phase.report.late_ms[2],
        f"others_share_{name}": phase.others_share,
        f"orders_{name}": phase.settled,
        f"left_{name}": phase.left,
        f"refused_{name}": phase.report.refused,
        f"unanswered_{name}": phase.report.unanswered,
    }


def audited(target: Target) -> list[str]:
    """Wait until OrderStream has no work left, check its promises, and return the breaches."""
    problems = await_quiet(target.connection)
    found = audit(target.running.postgres_url, grace_seconds=0)
    return problems + [
        f"{breach.promise}: {breach.subject}: {breach.detail}" for breaches in found.values() for breach in breaches
    ]
