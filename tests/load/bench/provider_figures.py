"""The figures of `make bench-provider`, their targets, and the tables that it prints."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from tests.load.bench.provider_bench import Cost

LATE_MAX_MS = 20.0
"""If the client is later than this in one of 100 requests, the machine had no CPU left for it."""

_FIGURES = ("provider", "rate", "figure", "target", "measured", "result")
_COSTS = (
    *("orders", "POST p50 / p99 / p99.9", "refused / unanswered", "client late p99"),
    *("CPU per order: all", "payment-worker", "payment-simulator", "client", "CPU busy", "CPU of other programs"),
)


class Figure(Struct, frozen=True):
    """A measured value and its target. `reached` is None if there is no target."""

    name: str
    target: str
    measured: str
    reached: bool | None


class Line(Struct, frozen=True):
    """A line of the table: a figure, and the row that it belongs to."""

    provider: str
    rate: str
    figure: Figure


def at_most(name: str, value: float, target: float, unit: str) -> Figure:
    """Return a figure that must not exceed its target. NaN does not reach it."""
    digits = 0 if value >= 100 or unit != "s" else 1
    return Figure(name, f"{target:.0f} {unit}", f"{value:.{digits}f} {unit}", value <= target)


def exactly(name: str, value: int, target: int) -> Figure:
    """Return a figure that must equal its target."""
    return Figure(name, f"{target:,}", f"{value:,}", value == target)


def plain(name: str, measured: str) -> Figure:
    """Return a figure without a target."""
    return Figure(name, "", measured, None)


def figure_table(lines: Sequence[Line]) -> str:
    """Return the figures as a Markdown table. Provider and rate are given once for each row."""
    table = [_row(_FIGURES), _row("---" for _ in _FIGURES)]
    before = None
    for line in lines:
        row = (line.provider, line.rate)
        shown = ("", "") if row == before else row
        before = row
        figure = line.figure
        result = "" if figure.reached is None else "reached" if figure.reached else "**missed**"
        table.append(_row((*shown, figure.name, figure.target, figure.measured, result)))
    return "\n".join(table)


def cost_table(costs: Sequence[Cost], processors: int) -> str:
    """Return the cost of each load as a Markdown table."""
    table = [_row(_COSTS), _row("---" for _ in _COSTS)]
    for cost in costs:
        report, used = cost.report, cost.used
        orders = max(1, report.accepted)
        ours = sum(used.cpu_seconds.values())
        late = f"{report.late_ms[2]:.1f} ms" + (": the machine is the limit" if report.late_ms[2] > LATE_MAX_MS else "")
        of_others = max(0.0, used.machine_seconds - ours - report.cpu_seconds)
        cells = (
            f"{cost.user}: {report.accepted:,}",
            f"{report.latency_ms[0]:.1f} / {report.latency_ms[2]:.1f} / {report.latency_ms[3]:.1f} ms",
            f"{report.refused} / {report.unanswered}",
            late,
            *(
                f"{seconds / orders * 1e6:.0f} us"
                for seconds in (
                    ours,
                    used.cpu_seconds.get("payment-worker", 0.0),
                    used.cpu_seconds.get("payment-simulator", 0.0),
                    report.cpu_seconds,
                )
            ),
            f"{used.machine_seconds / cost.seconds / processors:.0%}",
            f"{of_others / cost.seconds / processors:.0%}",
        )
        table.append(_row(cells))
    return "\n".join(table)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
