"""The rows of `make bench-provider`: each sets the faults of the simulator, loads the system, and returns figures."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
from msgspec import Struct

from tests.load.bench.provider_bench import ProviderBench, SettleTimes
from tests.load.bench.provider_figures import Figure, at_most, exactly, plain
from tests.support.figures import figures as samples

LATENCY_MS = 300
STUCK_VOIDS, HEALTHY_VOIDS = 1_000, 100
AS_BEFORE_FACTOR, AS_BEFORE_MS = 1.25, 10
"""A settle time counts as unchanged if it is at most this much longer."""
IN_FLIGHT = 1_000
"""The default of PAYMENT_CONCURRENCY."""
_CALLS_IN_FLIGHT = "orderstream_provider_calls_in_flight"
_DECISION_LIMIT_SECONDS = 120

_IDS = "SELECT coalesce(array_agg(id), '{}') FROM orders WHERE user_id = %s"
_NOW = "SELECT clock_timestamp()"
_LAST_SETTLED_SECONDS = """
SELECT extract(epoch FROM max(updated_at) - %s)::float8 FROM orders WHERE user_id = %s AND created_at <= %s
"""
_VOID_MS = """
SELECT coalesce(array_agg(extract(epoch FROM p.closed_at - o.aborted_at)::float8 * 1000), '{}')
FROM orders AS o JOIN payments AS p ON p.order_id = o.id
WHERE o.user_id = %s AND p.state = 'VOIDED'
"""
_LAST_VOIDED_SECONDS = """
SELECT extract(epoch FROM max(p.closed_at) - %s)::float8
FROM orders AS o JOIN payments AS p ON p.order_id = o.id WHERE o.user_id = %s
"""
_VOIDING = """
SELECT count(*) FROM orders AS o JOIN payments AS p ON p.order_id = o.id WHERE o.user_id = %s AND p.state = 'VOIDING'
"""


class Row(Struct, frozen=True):
    """A row of the table: what the provider does, and at which rate orders come."""

    provider: str
    rate: str
    run: Callable[[ProviderBench], Sequence[Figure]]


def every_call_slow(bench: ProviderBench) -> Sequence[Figure]:
    """Every call takes 300 ms."""
    bench.set_faults(latencyMs=LATENCY_MS)
    bench.place("slow", 1_000, bench.length(60, 6))
    settle = bench.settle_times("slow")
    return [at_most("settle p50", settle.p50, 400, "ms"), at_most("settle p99", settle.p99, 800, "ms")]


def long_tail(bench: ProviderBench) -> Sequence[Figure]:
    """The latency is log-normal, with a median of 300 ms and a 99th percentile of 2 s."""
    bench.set_faults(latencyMs=LATENCY_MS, latencyDistribution="lognormal", latencyP99Ms=2_000)
    bench.place("long-tail", 500, bench.length(60, 6))
    settle = bench.settle_times("long-tail")
    return [at_most("settle p50", settle.p50, 450, "ms"), at_most("settle p99", settle.p99, 3_000, "ms")]


def some_unanswered(bench: ProviderBench) -> Sequence[Figure]:
    """Each call takes 300 ms, and one of 20 is never answered. A second attempt means that the first had no answer."""
    bench.set_faults(latencyMs=LATENCY_MS, hangRate=0.05)
    bench.place("unanswered", 500, bench.length(60, 6))
    settle = bench.settle_times("unanswered")
    answered = bench.settle_times("unanswered", attempts_max=1)
    repeated = bench.settle_times("unanswered", attempts_min=2)
    return [
        at_most("settle p50", settle.p50, 400, "ms"),
        at_most("settle p99, answered at once", answered.p99, 1_000, "ms"),
        exactly("unanswered orders that did not settle by retry", _not_confirmed(bench, "unanswered"), 0),
        plain("share of orders with a retry", f"{repeated.orders / max(1, settle.orders):.1%} (5.0 % hang)"),
        plain("settle p50 / p99 with a retry", f"{repeated.p50:.0f} / {repeated.p99:.0f} ms"),
    ]


def hanging_voids(bench: ProviderBench) -> Sequence[Figure]:
    """1,000 voids hang for 3 minutes while 100 healthy orders are cancelled and others are placed."""
    stuck, healthy = bench.length(STUCK_VOIDS, 200), bench.length(HEALTHY_VOIDS, 20)
    during_seconds = bench.length(180, 15)
    bench.set_faults()
    bench.place("before-voids", 20, bench.length(60, 6))
    bench.place("stuck", 200, stuck / 200)
    bench.place("healthy", 20, healthy / 20)
    stuck_ids, healthy_ids = bench.value(_IDS, "stuck"), bench.value(_IDS, "healthy")
    bench.set_faults(stuckKeys=stuck_ids)
    with bench.orders("during-voids", 20, during_seconds):
        with bench.cancels(stuck_ids, rate=100) as cancelling:
            bench.expect_all("cancels of stuck", cancelling.ends())
        left_seconds = during_seconds - stuck / 100
        # The last 20 % of the time are for the last voids.
        with bench.cancels(healthy_ids, rate=healthy / (0.8 * left_seconds)) as cancelling:
            bench.expect_all("cancels of healthy", cancelling.ends())
    times_ms = sorted(bench.value(_VOID_MS, "healthy"))
    hanging = bench.value(_VOIDING, "stuck")
    back_at = bench.value(_NOW)
    bench.set_faults()
    bench.await_zero(_VOIDING, "stuck", _DECISION_LIMIT_SECONDS, "voids of stuck are left")
    before, during = bench.settle_times("before-voids"), bench.settle_times("during-voids")
    return [
        exactly("voids that hung until the end", hanging, stuck),
        *_as_before(before, during),
        exactly("healthy voids done", len(times_ms), healthy),
        at_most("healthy voids done in, p99", _nearest(times_ms, 0.99), 2_000, "ms"),
        plain("healthy voids done in, p50", f"{_nearest(times_ms, 0.5):.0f} ms"),
        plain("hanging voids done after the provider answers", f"{_seconds_after(bench, back_at, 'stuck'):.1f} s"),
    ]


def pending(bench: ProviderBench) -> Sequence[Figure]:
    """Each payment is Pending for 5 minutes, and then authorized."""
    seconds = bench.length(300, 15)
    bench.set_faults(pendingRate=1, pendingSeconds=seconds)
    with bench.orders("pending", 20, bench.length(60, 6), settle_limit_seconds=seconds + _DECISION_LIMIT_SECONDS):
        pass
    settle = bench.settle_times("pending")
    return [
        exactly("orders that are not CONFIRMED", _not_confirmed(bench, "pending"), 0),
        at_most("CONFIRMED after the answer, the longest", settle.longest / 1_000 - seconds, 30, "s"),
        plain("CONFIRMED after the answer, p50", f"{settle.p50 / 1_000 - seconds:.1f} s"),
    ]


def down(bench: ProviderBench) -> Sequence[Figure]:
    """The provider is down for 30 s while orders arrive. It takes 300 ms for each call before and afterwards."""
    up_seconds, down_seconds = bench.length(10, 3), bench.length(30, 6)
    bench.set_faults(latencyMs=LATENCY_MS)
    with bench.orders("down", 500, 2 * up_seconds + down_seconds):
        time.sleep(up_seconds)
        bench.set_faults(latencyMs=LATENCY_MS, down=True)
        time.sleep(down_seconds)
        bench.set_faults(latencyMs=LATENCY_MS)
        back_at = bench.value(_NOW)
    placed_before = bench.value(_LAST_SETTLED_SECONDS, back_at, "down", back_at)
    of_all = bench.value(_LAST_SETTLED_SECONDS, back_at, "down", bench.value(_NOW))
    return [
        at_most("all orders placed until its return settle after it in", placed_before, 30, "s"),
        plain(f"the orders of the {up_seconds} s after its return, too", f"{of_all:.1f} s"),
        exactly("orders that are not CONFIRMED", _not_confirmed(bench, "down"), 0),
    ]


def memory(bench: ProviderBench) -> Sequence[Figure]:
    """Calls of 6 s fill all room: first authorizations, repeated ones (of Pending payments), and voids that hang.

    One kind of call cannot use the room that is reserved for another, so orders alone do not fill it.
    """
    voids, seconds = bench.length(600, 600), bench.length(25, 18)
    bench.set_faults()
    bench.place("memory-voids", 200, voids / 200)
    ids = bench.value(_IDS, "memory-voids")
    bench.set_faults(latencyMs=6_000, pendingRate=0.5, pendingSeconds=10, stuckKeys=ids)
    with bench.orders("memory", 250, seconds):
        with bench.cancels(ids, rate=200) as cancelling:
            in_flight, pss_mib, rss_mib = _most_in_flight(bench, seconds)
            bench.expect_all("cancels of memory-voids", cancelling.ends())
        bench.set_faults()
    bench.await_zero(_VOIDING, "memory-voids", _DECISION_LIMIT_SECONDS, "voids of memory-voids are left")
    return [
        plain(f"calls in flight, of {IN_FLIGHT:,}", f"{in_flight:.0f}"),
        at_most("memory of payment-worker (RSS)", rss_mib, 120, "MiB"),
        plain("memory of payment-worker (PSS)", f"{pss_mib:.0f} MiB"),
    ]


ROWS = {
    "slow": Row("300 ms, every call", "1,000/s for 60 s", every_call_slow),
    "long-tail": Row("log-normal, median 300 ms, p99 2 s", "500/s for 60 s", long_tail),
    "unanswered": Row("300 ms, 5 % of calls never answered", "500/s for 60 s", some_unanswered),
    "voids": Row("1,000 voids hang for 3 minutes, 100 healthy cancels meanwhile", "20/s", hanging_voids),
    "pending": Row("Pending for 5 minutes, then Authorized", "20/s for 60 s", pending),
    "down": Row("down for 30 s, then back", "500/s", down),
    "memory": Row("6 s, voids hang: 1,000 calls in flight", "250/s for 25 s", memory),
}


def _not_confirmed(bench: ProviderBench, user: str) -> int:
    return sum(number for status, number in bench.statuses(user).items() if status != "CONFIRMED")


def _as_before(before: SettleTimes, during: SettleTimes) -> Sequence[Figure]:
    """Compare settle times with those before."""
    return [
        at_most(f"settle {name} ({earlier:.0f} ms without them)", now, AS_BEFORE_FACTOR * earlier + AS_BEFORE_MS, "ms")
        for name, earlier, now in (("p50", before.p50, during.p50), ("p99", before.p99, during.p99))
    ]


def _nearest(ordered: Sequence[float], share: float) -> float:
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan


def _seconds_after(bench: ProviderBench, moment: object, user: str) -> float:
    """Return the seconds from `moment` to the end of the last void of `user`."""
    return float(bench.value(_LAST_VOIDED_SECONDS, moment, user))


def _most_in_flight(bench: ProviderBench, seconds: float) -> tuple[float, float, float]:
    """Watch payment-worker for some time. Return its most calls in flight, and the largest PSS and RSS in MiB."""
    worker = bench.system.children["payment-worker"]
    assert worker.health_url is not None
    page = worker.health_url.replace("/readyz", "/metrics")
    most: list[float] = [0, 0, 0]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text(encoding="ascii")
        kib = {line.split()[0]: int(line.split()[1]) for line in rollup.splitlines()[1:]}
        in_flight = sum(value for (name, _), value in samples(httpx.get(page).text).items() if name == _CALLS_IN_FLIGHT)
        now = (in_flight, kib["Pss:"] / 1_024, kib["Rss:"] / 1_024)
        most = [max(pair) for pair in zip(most, now, strict=True)]
        time.sleep(0.1)
    return most[0], most[1], most[2]
