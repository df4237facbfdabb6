"""The tables of `make bench`, and their places in the documents.

`python -m tests.load.bench.report RESULT.json` writes them into README.md and docs/performance.md, and draws the plot.
"""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from orderstream.local.processes.state import checkout
from tests.load.bench import contestants, plot, results
from tests.load.bench.results import Result, Row, Spread, Step

README, PAGE = checkout() / "README.md", checkout() / "docs" / "performance.md"
PLOT = checkout() / "docs" / "images" / "performance.svg"
_PICTURE = "![Settled orders per second, CPU and settle times of each contestant](images/performance.svg)"
NOT_REACHED = "not reached"


def whole(result: Result) -> str:
    """Return everything as Markdown: the comparison, the CPU by process, the rows of OrderStream, and the times."""
    parts = [_caption(result), comparison(result), _cpu_by_process(result), _failures(result), _rows(result.rows)]
    parts.append(times(result.steps))
    return "\n\n".join(part for part in parts if part)


def short(result: Result) -> str:
    """Return the table of the README."""
    columns: list[tuple[str, Callable[[str], str]]] = [
        ("settled/s", lambda name: _cell(results.of(result, name, "settled_per_second"), 1, 0)),
        ("CPU per order", lambda name: _cell(results.of(result, name, "cpu_us_saturated"), 1, 0, " us")),
        ("settle p50 / p99 at 40/s", lambda name: _pair(result, name, "40")),
    ]
    return f"{_table(result, columns)}\n\n{_caption(result)}"


def comparison(result: Result) -> str:
    """Return the table of the contestants."""

    def figure(name: str, scale: float = 1, digits: int = 0, unit: str = "") -> Callable[[str], str]:
        return lambda contestant: _cell(results.of(result, contestant, name), scale, digits, unit, with_range=True)

    columns: list[tuple[str, Callable[[str], str]]] = [
        ("settled/s", figure("settled_per_second")),
        ("OrderStream is", lambda name: _ratio(result, name)),
        ("CPU per order, saturated", figure("cpu_us_saturated", unit=" us")),
        ("settle p50 / p99 at 40/s", lambda name: _pair(result, name, "40")),
        ("CPU per order at 40/s", figure("cpu_us_40", 1e-3, 1, " ms")),
        ("settle p50 / p99 at 200/s", lambda name: _pair(result, name, "200")),
        ("CPU per order at 200/s", figure("cpu_us_200", 1e-3, 1, " ms")),
        ("POST p50 / p99 / p99.9 at 40/s", lambda name: _post(result, name, "40")),
        ("POST p50 / p99 / p99.9, saturated", lambda name: _post(result, name, "saturated")),
        ("memory (PSS)", figure("memory_mib", unit=" MiB")),
        ("WAL of PostgreSQL per order", figure("wal_bytes_saturated", unit=" B")),
        ("transactions per order", figure("transactions_saturated", digits=2)),
        ("fsyncs of PostgreSQL per order", figure("fsyncs_saturated", digits=2)),
    ]
    return _table(result, columns)


def _table(result: Result, columns: Sequence[tuple[str, Callable[[str], str]]]) -> str:
    """Return a table with a line for each contestant that was measured."""
    measured = [name for name in result.names if results.of(result, name, "settled_per_second")]
    if not measured:
        return ""
    lines = [_line(["", *(title for title, _ in columns)]), _line("---" for _ in range(len(columns) + 1))]
    lines += [_line([result.names[name], *(cell(name) for _, cell in columns)]) for name in measured]
    empty = [""] * (len(columns) - 1)
    lines += [_line([result.names[name], f"left out: {why}", *empty]) for name, why in result.left_out.items()]
    return "\n".join(lines)


def _cell(spread: Spread | None, scale: float, digits: int, unit: str = "", *, with_range: bool = False) -> str:
    """Return the median, and if wanted the range in parentheses."""
    if spread is None:
        return ""
    median, least, most = (f"{value * scale:,.{digits}f}" for value in (spread.median, spread.least, spread.most))
    return f"{median}{unit} ({least} to {most})" if with_range and least != most else f"{median}{unit}"


def _pair(result: Result, name: str, phase: str) -> str:
    """Return the median over the runs of the percentiles 50 and 99 of the settle time."""
    return _percentiles(result, name, [f"settle_{share}_ms_{phase}" for share in ("p50", "p99")])


def _post(result: Result, name: str, phase: str) -> str:
    """Return the median over the runs of the percentiles 50, 99 and 99.9 of the time of a POST."""
    return _percentiles(result, name, [f"post_{share}_ms_{phase}" for share in ("p50", "p99", "p999")])


def _percentiles(result: Result, name: str, figures: Sequence[str]) -> str:
    found = [results.of(result, name, figure) for figure in figures]
    if None in found:
        return "" if name == contestants.LIMIT else NOT_REACHED
    return " / ".join(f"{spread.median:.1f}" for spread in found if spread) + " ms"


def _ratio(result: Result, name: str) -> str:
    """Return how OrderStream's rate compares to that of another contestant."""
    ratio = results.ratio(result, contestants.OURS, name, "settled_per_second")
    if ratio is None or name == contestants.OURS:
        return ""
    return f"{ratio:.0%} of it" if name == contestants.LIMIT else f"{ratio:.1f} times"


def _caption(result: Result) -> str:
    machine = result.machine
    runs = max((sum(run.contestant == name for run in result.runs) for name in result.names), default=0)
    command = "make bench QUICK=1" if result.quick else "make bench"
    median = "" if runs == 0 else " One run." if runs == 1 else f" Median of {runs} runs."
    return (
        f"Measured on {result.date} with `{command}`: {machine.cores} cores of {machine.cpu}, "
        f"{machine.memory_gib:g} GiB, {machine.kernel}, with everything on them.{median}"
    )


def _cpu_by_process(result: Result) -> str:
    """Return the CPU per order of each process, for each contestant and phase."""
    lines = []
    for name, words in result.names.items():
        for phase in ("saturated", "40", "200"):
            cpu_us = results.cpu_of(result, name, phase)
            parts = ", ".join(
                f"{process} {cpu:,.0f}" for process, cpu in sorted(cpu_us.items(), key=lambda item: -item[1])
            )
            if parts:
                lines.append(_line([words, phase if phase == "saturated" else f"{phase}/s", parts]))
    head = [_line(["", "load", "CPU per order by process, in us"]), _line(["---"] * 3)]
    return "\n".join([*head, *lines]) if lines else ""


def _failures(result: Result) -> str:
    return "\n".join(f"- {problem}" for problem in result.problems)


def _rows(rows: Sequence[Row]) -> str:
    """Return the further rows of OrderStream."""
    if not rows:
        return ""
    lines = [_line(["OrderStream alone", "figure", "measured"]), _line(["---"] * 3)]
    for row in rows:
        about = row.about
        for figure in row.figures:
            lines.append(_line([about, figure.name, figure.measured]))
            about = ""
    return "\n".join(lines)


def times(steps: Sequence[Step]) -> str:
    """Return how long each step took, and all of them. Steps of the same name are added."""
    if not steps:
        return ""
    totals: dict[str, float] = {}
    for step in steps:
        totals[step.name] = totals.get(step.name, 0.0) + step.seconds
    lines = [_line(["step", "time"]), _line(["---"] * 2)]
    lines += [_line([name, _minutes(seconds)]) for name, seconds in totals.items()]
    return "\n".join([*lines, _line(["all", _minutes(sum(totals.values()))])])


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def placed(text: str, name: str, content: str) -> str:
    """Return a page with `content` between the markers `name`. Raises ValueError if the page has not one such place."""
    begin, end = f"<!-- bench {name}: written by `make bench-report` -->\n", f"<!-- end of bench {name} -->"
    between = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    text, places = between.subn(lambda _: f"\n{content}\n\n", text)
    if places != 1:
        raise ValueError(f"the page must have one place for the table {name}, and has {places}")
    return text


def write(result: Result) -> None:
    """Write the tables into the documents, with what failed, and draw the plot. Raises ValueError without a table."""
    table = comparison(result)
    if not table:
        raise ValueError("the result has no comparison")
    README.write_text(placed(README.read_text(encoding="utf-8"), "short", short(result)), encoding="utf-8")
    abouts = "\n".join(f"- **{result.names[name]}**: {about}" for name, about in result.abouts.items() if about)
    page = placed(PAGE.read_text(encoding="utf-8"), "contestants", abouts)
    page = placed(page, "comparison", "\n\n".join(filter(None, (_caption(result), table, _failures(result), _PICTURE))))
    page = placed(page, "cpu", _cpu_by_process(result))
    PAGE.write_text(placed(page, "rows", _rows(result.rows)), encoding="utf-8")
    PLOT.write_text(plot.draw(result), encoding="utf-8")


if __name__ == "__main__":
    write(results.read(Path(sys.argv[1])))
