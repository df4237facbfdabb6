"""The further rows of `make bench`: each loads OrderStream in another way and returns figures."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from tests.load.bench import counter_row, counters, load
from tests.load.bench.comparison import audited
from tests.load.bench.console_rows import fill
from tests.load.bench.order_bench import OrderBench, number, order_bench, post_times, settle_times
from tests.load.bench.results import Row, RowFigure
from tests.load.bench.snapshot import held_snapshot
from tests.load.bench.target import SKU_PREFIX
from tests.load.system import say

RATES = (1, 40, 200, 500)
SKUS = 100_000
READ_SECONDS = 5
READ_CONNECTIONS = 64
COLD_ORDERS = 20_000
OPEN_ORDERS = 1_000_000
GROWTH = (1_000_000, 5_000_000)
SERVICES = ("API_GATEWAY", "OUTBOX_RELAY", "PAYMENT_WORKER", "INVENTORY_WORKER", "ORDER_SERVICE")

_SETTLED_IDS = "SELECT id FROM orders WHERE status = 'CONFIRMED' ORDER BY id LIMIT %s"
_OPEN = """
INSERT INTO orders (id, user_id, amount, currency, status, created_at, updated_at, next_check_at)
SELECT '00000000-0000-7000-8000-' || lpad(to_hex(number), 12, '0'), 'open', 1, 'USD', 'PROCESSING', now(), now(),
       now() + interval '1 day'
FROM generate_series(1, %s::bigint) AS number
"""
_OPEN_ID = "00000000-0000-7000-8000-000000000001"
_REMOVE_OPEN = "DELETE FROM orders WHERE user_id = 'open'"


class Spec(Struct, frozen=True):
    """A row. Rows that follow each other share a stack if their settings are equal and none wants one of its own.

    A row whose tables have rows that no service wrote is not audited. The books of its own orders are checked anyway.
    """

    about: str
    measure: Callable[[OrderBench], Sequence[RowFigure]]
    settings: Mapping[str, str] = {}
    has_own_stack: bool = False


def idle(bench: OrderBench) -> Sequence[RowFigure]:
    """Nothing arrives."""
    seconds = bench.length(20, 4)
    pids = bench.running.processes()
    before = counters.cpu_seconds(pids)
    time.sleep(seconds)
    used = {name: total - before[name] for name, total in counters.cpu_seconds(pids).items()}
    memory = counters.memory_mib(pids) or {}
    services = counters.services_memory_mib(pids)
    parts = sorted(memory, key=lambda name: -memory[name])
    return [
        number("CPU of the whole stack, of one core", sum(used.values()) / seconds * 100, "%", 1),
        *(number(f"CPU of {name}", share / seconds * 100, "%", 2) for name, share in used.items()),
        number("memory (PSS) of the whole stack", sum(memory.values()), "MiB"),
        number("memory (PSS) of the five services", services or float("nan"), "MiB"),
        *(number(f"memory (PSS) of {name}", memory[name], "MiB") for name in parts),
    ]


def sustained(bench: OrderBench) -> Sequence[RowFigure]:
    """Clients place as many orders as are accepted, for 60 s."""
    kafka = _kafka_bytes(bench)
    seconds = bench.length(60, 8)
    phase = bench.at_most(seconds)
    orders = max(1, phase.settled)
    used = phase.used
    return [
        number("length of the load", seconds, "s"),
        number("settled/s", phase.settled_per_second),
        number("connections of the load", bench.connections),
        post_times("", phase),
        settle_times("", phase),
        number("CPU per order, all processes", sum(phase.cpu_us.values()), "us"),
        *(number(f"CPU per order, {name}", cpu, "us") for name, cpu in phase.cpu_us.items()),
        number("CPU per order, load generator", phase.report.cpu_seconds / orders * 1e6, "us"),
        number("WAL per order", used.wal_bytes / orders, "bytes"),
        number("transactions per order", used.transactions / orders, digits=3),
        number("fsyncs of PostgreSQL per order", used.fsyncs / orders, digits=3),
        number("bytes in Kafka per order", (_kafka_bytes(bench) - kafka) / orders, "bytes"),
        number("CPU of other programs", phase.others_share * 100, "%"),
    ]


def after_load(bench: OrderBench) -> Sequence[RowFigure]:
    """40 orders per second arrive directly after a high load, and after another one whose files were flushed first."""
    figures = []
    for flushes_first, name in ((False, ", no flush"), (True, ", after a flush")):
        bench.at_most(bench.length(12, 3))
        paced = bench.at_rate(40, bench.length(8, 3), flushes_first=flushes_first)
        figures += [settle_times(f" at 40/s{name}", paced), post_times(f" at 40/s{name}", paced)]
    return figures


def rates(bench: OrderBench) -> Sequence[RowFigure]:
    """Orders arrive at fixed rates."""
    return [
        figure
        for rate, at in _rates(bench)
        # A rate of 1/s needs a while for enough orders.
        for phase in [bench.at_rate(rate, bench.length(20 if rate == 1 else 10, 3))]
        for figure in (
            settle_times(at, phase),
            post_times(at, phase),
            number(f"CPU per order{at}", sum(phase.cpu_us.values()) / 1e3, "ms", 2),
        )
    ]


def _rates(bench: OrderBench) -> list[tuple[float, str]]:
    """Return the rates of a row, in words too. The last one is half of the maximum."""
    half = round(bench.maximum() / 2)
    return [*((rate, f" at {rate}/s") for rate in RATES), (half, f" at {half:,}/s, half of the maximum")]


def rates_of_provider(bench: OrderBench) -> Sequence[RowFigure]:
    """Orders arrive at fixed rates. The provider is the payment simulator, which answers at once and after 300 ms."""
    figures = []
    rates = _rates(bench)
    for latency_ms in (0, 300):
        bench.set_faults(latencyMs=latency_ms)
        for rate, at in rates:
            phase = bench.at_rate(rate, bench.length(10 if rate == 1 else 6, 3))
            load_in_words = f"{at}, a call takes {latency_ms} ms"
            figures += [settle_times(load_in_words, phase), post_times(load_in_words, phase)]
    bench.set_faults()
    return figures


def reads(bench: OrderBench) -> Sequence[RowFigure]:
    """Clients read one settled order, many settled orders for the first time, and one open order."""
    bench.maximum()
    ids = [order_id for (order_id,) in bench.connection.execute(_SETTLED_IDS, (COLD_ORDERS,)).fetchall()]
    with bench.superuser() as connection:
        connection.execute(_OPEN.encode(), (1,))
        figures = [
            _reads(bench, "GET/s of one settled order (hot)", ids[:1], 200),
            _reads(bench, f"GET/s of {len(ids):,} settled orders (cold)", ids, 200, once=True),
            _reads(bench, "GET/s of one open order", [_OPEN_ID], 202),
        ]
        connection.execute(_REMOVE_OPEN)
    return figures


def _reads(bench: OrderBench, name: str, ids: Sequence[str], expected: int, *, once: bool = False) -> RowFigure:
    """Read orders over READ_CONNECTIONS connections. If `once`, stop before any order is read a second time."""
    base_url = bench.running.base_url
    seconds = bench.length(READ_SECONDS, 1)
    # A gateway with one core reads less than 10,000 cold orders per second.
    seconds = min(seconds, len(ids) / 10_000) if once else seconds
    requests = load.reads(base_url, ids)
    with load.saturating(
        base_url, requests, connections=READ_CONNECTIONS, seconds=seconds, expected=expected
    ) as generator:
        report = generator.ends()
    if report.refused or report.unanswered:
        bench.problems.append(f"{name}: {report.statuses}, {report.unanswered} unanswered")
    cpu_us = report.cpu_seconds / max(1, report.accepted) * 1e6
    return RowFigure(
        name, f"{report.accepted / report.seconds:,.0f} (p99 {report.latency_ms[2]:.1f} ms, load {cpu_us:.0f} us)"
    )


def lines(bench: OrderBench) -> Sequence[RowFigure]:
    """Orders have 1, 10 and 100 lines."""
    skus = [f"{SKU_PREFIX}line-{number}" for number in range(100)]
    bench.stock(skus)
    return [
        number(f"settled/s with {count} lines", bench.at_most(skus=skus, lines=count).settled_per_second)
        for count in (1, 10, 100)
    ]


def skus(bench: OrderBench) -> Sequence[RowFigure]:
    """All orders want one SKU, and then each wants another one of 100,000."""
    count = int(bench.length(SKUS, 1_000))
    many = [f"{SKU_PREFIX}of-{count}-{number}" for number in range(count)]
    bench.stock(many)
    return [
        number("settled/s with one hot SKU", bench.at_most().settled_per_second),
        number(f"settled/s with {count:,} SKUs", bench.at_most(skus=many).settled_per_second),
    ]


def backlog(bench: OrderBench) -> Sequence[RowFigure]:
    """A million open orders wait in the table."""
    count = int(bench.length(OPEN_ORDERS, 10_000))
    without = bench.at_most().settled_per_second
    with _open_orders(bench, count):
        with_them = bench.at_most().settled_per_second
        paced = bench.at_rate(40, bench.length(10, 3))
    return [
        number("settled/s without", without),
        number(f"settled/s with {count:,} open orders", with_them),
        settle_times(f" at 40/s with {count:,} open orders", paced),
        post_times(f" at 40/s with {count:,} open orders", paced),
    ]


@contextmanager
def _open_orders(bench: OrderBench, count: int) -> Iterator[None]:
    """Keep open orders in the table until the block ends."""
    with bench.superuser() as connection:
        say(f"Adding {count:,} open orders")
        connection.execute(_OPEN.encode(), (count,))
        connection.execute("VACUUM ANALYZE orders")
        connection.execute("CHECKPOINT")
        yield
        connection.execute(_REMOVE_OPEN)
        connection.execute("VACUUM ANALYZE orders")


def snapshot(bench: OrderBench) -> Sequence[RowFigure]:
    """A session holds a snapshot, as pg_dump does, so that no dead row is removed."""
    without = bench.at_most().settled_per_second
    with held_snapshot(bench.system.urls["POSTGRES_URL"]):
        held = bench.at_most().settled_per_second
        paced = bench.at_rate(40, bench.length(10, 3))
    return [
        number("settled/s without", without),
        number("settled/s with a held snapshot", held),
        settle_times(" at 40/s with a held snapshot", paced),
        post_times(" at 40/s with a held snapshot", paced),
    ]


def growth(bench: OrderBench) -> Sequence[RowFigure]:
    """The tables have no orders, then 1 and 5 million."""
    figures = [number("settled/s with empty tables", bench.at_most().settled_per_second)]
    filled = 0
    sizes = [int(bench.length(size, size / 100)) for size in GROWTH]
    for size in sizes:
        say(f"Filling the tables up to {size:,} orders")
        fill(bench.system.superuser_url, sizes[-1], first=filled + 1, last=size)
        with bench.superuser() as connection:
            connection.execute("CHECKPOINT")
        filled = size
        figures.append(number(f"settled/s with {size:,} orders", bench.at_most().settled_per_second))
        paced = bench.at_rate(40, bench.length(8, 3))
        figures += [
            settle_times(f" at 40/s with {size:,} orders", paced),
            post_times(f" at 40/s with {size:,} orders", paced),
        ]
    return figures


def saturated(bench: OrderBench) -> Sequence[RowFigure]:
    """Clients place as many orders as are accepted, and then 40/s."""
    phase = bench.at_most(bench.length(12, 3))
    paced = bench.at_rate(40, bench.length(10, 3))
    return [
        number("settled/s", phase.settled_per_second),
        number("CPU per order, all processes", sum(phase.cpu_us.values()), "us"),
        settle_times(" at 40/s", paced),
        post_times(" at 40/s", paced),
        number("CPU per order at 40/s", sum(paced.cpu_us.values()) / 1e3, "ms", 2),
    ]


def _kafka_bytes(bench: OrderBench) -> int:
    """Return the bytes of all records in Kafka."""
    return sum(path.stat().st_size for path in bench.system.kafka_data.rglob("*.log"))


ROWS = {
    "idle": Spec("idle", idle),
    "sustained": Spec("as many orders as are accepted", sustained),
    "after": Spec("directly after a high load", after_load),
    "reads": Spec("reads over 64 connections, one gateway", reads),
    "rates": Spec("fixed rates, the provider in the process", rates),
    "lines": Spec("lines per order", lines),
    "skus": Spec("hot SKU", skus),
    "snapshot": Spec("a held snapshot", snapshot),
    "backlog": Spec("a backlog of open orders", backlog),
    "provider": Spec("fixed rates, the payment simulator", rates_of_provider, {"PAYMENT_PROVIDER": "simulator"}),
    "replicas": Spec("2 processes of each service", saturated, {f"REPLICAS_{name}": "2" for name in SERVICES}),
    "partitions": Spec("12 partitions of each topic", saturated, {"KAFKA_PARTITIONS": "12"}),
    "growth": Spec("growth of the tables", growth, has_own_stack=True),
}
LATE = "the time of `make bench` was over: run `make bench PEERS= ROWS={}`"
NAMES = (counter_row.NAME, *ROWS)
QUICK_ROWS = ("idle", "sustained", "reads")


def measure(
    names: Sequence[str], folder: Path, *, quick: bool, is_late: Callable[[], bool] = lambda: False
) -> Iterator[Row]:
    """Measure these rows in the order of NAMES. A row that fails does not keep the others from being measured.

    Rows whose stack would start when it `is_late` are left out, and say so.
    """
    if counter_row.NAME in names:
        yield _counters(folder.with_name(counter_row.NAME), quick=quick)
    chosen = [name for name in ROWS if name in names]
    for _, group in itertools.groupby(chosen, key=_stack):
        if is_late():
            yield from (Row(name, ROWS[name].about, [RowFigure("left out", LATE.format(name))]) for name in group)
        else:
            yield from _measure(list(group), folder, quick=quick)


def _counters(folder: Path, *, quick: bool) -> Row:
    say(f"Row {counter_row.NAME}: {counter_row.ABOUT}")
    try:
        return counter_row.measure(folder, quick=quick)
    except Exception as error:  # noqa: BLE001 - a row may fail in any way, and the others go on
        return _failed(counter_row.NAME, counter_row.ABOUT, error)


def _failed(name: str, about: str, error: Exception) -> Row:
    say(f"Failed: {error!r}")
    return Row(name, about, [], [f"failed: {type(error).__name__}: {error}"[:500]])


def _stack(name: str) -> tuple[object, ...]:
    spec = ROWS[name]
    return (tuple(sorted(spec.settings.items())), name if spec.has_own_stack else "")


def _measure(names: Sequence[str], folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure rows on one stack, and audit it after the last one. If a row fails, so do the other rows of the stack."""
    left = list(names)
    try:
        with order_bench(folder, ROWS[names[0]].settings, quick=quick) as bench:
            for name in names:
                say(f"Row {name}: {ROWS[name].about}")
                figures = ROWS[name].measure(bench)
                problems = bench.check()
                if name == names[-1] and not ROWS[name].has_own_stack:
                    problems += audited(bench)
                left.remove(name)
                yield Row(name, ROWS[name].about, figures, problems)
    except Exception as error:  # noqa: BLE001 - a row may fail in any way, and the others go on
        if not left:
            yield _failed(names[-1], "the end of its stack", error)
        for name in left:
            yield _failed(name, ROWS[name].about, error)
