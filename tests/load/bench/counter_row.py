"""The row `counters` of `make bench`: what an order makes each process ask of PostgreSQL and Kafka."""

from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from orderstream.audit.check import audit
from tests.load.bench.results import Row, RowFigure
from tests.load.system import say
from tests.support.order_costs import FASTER_THAN_ANSWERED, Counts, metered

NAME, ABOUT = "counters", "statements and requests, counted between the services and their servers"
WARM_UP = 2_000


class Load(Struct, frozen=True):
    """How many orders are placed at a rate."""

    name: str
    rate: float
    orders: int


FULL = (
    Load("1/s", 1, 15),
    Load("40/s", 40, 400),
    Load("200/s", 200, 1_600),
    Load("saturated", FASTER_THAN_ANSWERED, 20_000),
)
QUICK = tuple(Load(load.name, load.rate, max(3, load.orders // 5)) for load in FULL)
_FIGURES: Sequence[tuple[str, Callable[[Counts], float], str]] = (
    ("statements", lambda counts: sum(counts.statements.values()), ""),
    ("round trips to PostgreSQL", lambda counts: sum(counts.round_trips.values()), ""),
    ("requests to Kafka", lambda counts: sum(counts.requests.values()), ""),
    ("WAL", lambda counts: counts.wal_bytes, " bytes"),
    ("fsyncs of PostgreSQL", lambda counts: counts.fsyncs, ""),
)


def measure(folder: Path, *, quick: bool) -> Row:
    """Place orders at each rate on a system with counters below `folder`. Raises what its start raises."""
    with metered(folder) as meter:
        meter.placed(FASTER_THAN_ANSWERED, WARM_UP)
        used = {}
        for load in QUICK if quick else FULL:
            say(f"Counting at {load.name}")
            used[load] = meter.placed(load.rate, load.orders)
        found = audit(meter.postgres_url, grace_seconds=0)
    problems = [f"{breach.promise}: {breach.subject}: {breach.detail}" for part in found.values() for breach in part]
    return Row(NAME, ABOUT, figures(used), problems)


def figures(used: dict[Load, Counts]) -> list[RowFigure]:
    """Return each count per order, with the value of each load, and the statements and requests of each process."""
    loads = ", ".join(load.name for load in used)
    found = []
    for name, count, unit in _FIGURES:
        values = " / ".join(_words(count(counts) / load.orders) for load, counts in used.items())
        found.append(RowFigure(f"{name} per order, {loads}", values + unit))
    for load, counts in used.items():
        for name, by_process in (("statements", counts.statements), ("requests to Kafka", counts.requests)):
            parts = [f"{process} {_words(number / load.orders)}" for process, number in by_process.most_common()]
            found.append(RowFigure(f"{name} per order, {load.name}, by process", ", ".join(parts)))
    return found


def _words(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
