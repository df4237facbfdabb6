"""The results of `make bench` are medians over the runs, and its report has a line for each contestant."""

import math
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from tests.load.bench import counter_row, plot, report, results
from tests.load.bench.counters import Usage
from tests.load.bench.generator_job import Report
from tests.load.bench.laps import Laps
from tests.load.bench.results import Figures, Machine, Result, Row, RowFigure, Spread, Step
from tests.load.bench.target import Phase
from tests.support.order_costs import Counts


def run(contestant: str, settled: float, p99: float | None = None) -> Figures:
    values = {"settled_per_second": float(settled), "cpu_us_saturated": 500.0}
    values |= {} if p99 is None else {"settle_p50_ms_40": 5.0, "settle_p99_ms_40": p99}
    return Figures(
        contestant=contestant, values=values, cpu_us={"saturated": {"postgres": float(settled), "gateway": 1.0}}
    )


RESULT = Result(
    date="2026-11-26",
    quick=False,
    machine=Machine(cpu="a processor", cores=2, memory_gib=4.0, kernel="Linux 6", versions={}),
    names={"orderstream": "OrderStream", "dbos": "DBOS", "usual": "the usual <way>"},
    abouts={"dbos": "A library."},
    runs=[
        *(run("orderstream", settled, p99) for settled, p99 in ((3_000, 16.0), (1_000, 40.0), (2_000, 20.0))),
        *(run("dbos", settled) for settled in (50, 80)),
        Figures(contestant="usual", failure="not installed"),
    ],
    rows=[Row("reads", "reads", [RowFigure("hot", "10,000"), RowFigure("cold", "5,000")], ["a problem"])],
)


def test_a_figure_is_the_median_with_the_range_of_the_runs() -> None:
    assert results.of(RESULT, "orderstream", "settled_per_second") == Spread(2_000, 1_000, 3_000)
    assert results.of(RESULT, "dbos", "settled_per_second") == Spread(65, 50, 80)
    assert results.of(RESULT, "usual", "settled_per_second") is None
    assert results.spread([math.nan, 2.0]) == Spread(2, 2, 2)
    assert results.ratio(RESULT, "orderstream", "dbos", "settled_per_second") == 2_000 / 65
    assert results.cpu_of(RESULT, "orderstream", "saturated") == {"postgres": 2_000, "gateway": 1}


def test_a_failed_contestant_and_a_problem_of_a_row_are_problems_of_the_result() -> None:
    assert RESULT.problems == ["usual: not installed", "reads: a problem"]


def test_the_comparison_has_a_line_for_each_contestant_that_was_measured() -> None:
    lines = report.comparison(RESULT).splitlines()[2:]
    assert [line.split(" | ")[:5] for line in lines] == [
        ["| OrderStream", "2,000 (1,000 to 3,000)", "", "500 us", "5.0 / 20.0 ms"],
        ["| DBOS", "65 (50 to 80)", "30.8 times", "500 us", "not reached"],
    ]
    assert "- usual: not installed" in report.whole(RESULT)


def test_a_contestant_that_was_left_out_has_a_line_with_the_reason_and_is_no_problem() -> None:
    result = msgspec.structs.replace(
        RESULT, names={**RESULT.names, "temporal": "Temporal"}, left_out={"temporal": "not installed"}
    )
    last = report.comparison(result).splitlines()[-1]
    assert last.startswith("| Temporal | left out: not installed |")
    assert last.count("|") == report.comparison(result).splitlines()[0].count("|")
    assert result.problems == RESULT.problems


def test_the_laps_make_up_the_whole_time() -> None:
    laps = Laps(iter([10.0, 12.0, 72.5]).__next__)
    laps.end("install dbos")
    laps.end("dbos")
    assert laps.steps == [Step("install dbos", 2.0), Step("dbos", 60.5)]
    assert laps.seconds == 62.5


def test_the_times_of_the_runs_of_a_contestant_are_added() -> None:
    lines = report.times([Step("dbos", 61.0), Step("usual", 5.0), Step("dbos", 60.0)]).splitlines()[2:]
    assert lines == ["| dbos | 2:01 min |", "| usual | 0:05 min |", "| all | 2:06 min |"]
    assert report.times([]) == ""


def test_counts_are_shown_per_order_for_each_load_and_for_each_process() -> None:
    counts = Counts(
        statements=Counter({"relay": 30, "gateway": 10}),
        round_trips=Counter({"relay": 20}),
        requests=Counter({"relay": 5}),
        wake_ups=Counter(),
        wal_bytes=25_000,
        fsyncs=1,
        heartbeats=0,
    )
    few, many = counter_row.Load("40/s", 40, 10), counter_row.Load("saturated", 1_000, 100)
    found = {figure.name: figure.measured for figure in counter_row.figures({few: counts, many: counts})}
    assert found["statements per order, 40/s, saturated"] == "4.00 / 0.40"
    assert found["requests to Kafka per order, 40/s, saturated"] == "0.50 / 0.05"
    assert found["WAL per order, 40/s, saturated"] == "2,500 / 250 bytes"
    assert found["statements per order, 40/s, by process"] == "relay 3.00, gateway 1.00"


def test_tables_are_written_between_their_markers() -> None:
    page = "a\n<!-- bench short: written by `make bench-report` -->\nold\n<!-- end of bench short -->\nb"
    once = report.placed(page, "short", "new")
    assert "\nnew\n" in once
    assert "old" not in once
    assert report.placed(once, "short", "new") == once
    with pytest.raises(ValueError, match="one place for the table other"):
        report.placed(page, "other", "new")


def test_the_documents_have_the_places_of_the_tables() -> None:
    report.placed(report.README.read_text(encoding="utf-8"), "short", "")
    for name in ("contestants", "comparison", "cpu", "rows"):
        report.placed(report.PAGE.read_text(encoding="utf-8"), name, "")


def test_the_plot_is_svg_with_a_bar_for_each_figure_that_was_measured() -> None:
    drawn = ET.fromstring(plot.draw(RESULT))  # noqa: S314 - our own text
    assert len(drawn.findall("{http://www.w3.org/2000/svg}rect")) == 2 + 2 + 1


def test_a_result_is_the_same_after_it_was_written(tmp_path: Path) -> None:
    results.write(RESULT, tmp_path / "results" / "result.json")
    again = results.read(tmp_path / "results" / "result.json")
    assert msgspec.json.encode(again) == msgspec.json.encode(RESULT)


def test_the_rate_of_a_phase_counts_the_time_of_the_last_orders() -> None:
    answers = Report(
        accepted=100, refused=0, unanswered=0, statuses={}, latency_ms=[], late_ms=[], seconds=2, cpu_seconds=0.1
    )
    used = Usage({"postgres": 0.3, "gateway": 0.1}, machine_seconds=1.0, wal_bytes=0, transactions=0)
    phase = Phase(answers, used, settled=100, left=0, seconds=4.0, settle_ms=(1.0, 2.0))
    assert phase.settled_per_second == 25
    assert phase.cpu_us == {"postgres": pytest.approx(3_000), "gateway": pytest.approx(1_000)}
    assert phase.others_share == pytest.approx(0.5)
