"""The table of the provider's benchmark says for each figure whether it reached its target."""

import math

from tests.load.bench.counters import Usage
from tests.load.bench.generator_job import Report
from tests.load.bench.provider_bench import Cost
from tests.load.bench.provider_figures import Line, at_most, cost_table, exactly, figure_table, plain


def test_a_figure_reaches_its_target_up_to_the_target_itself() -> None:
    assert at_most("settle p50", 400, 400, "ms").reached
    assert not at_most("settle p50", 400.1, 400, "ms").reached
    assert not at_most("settle p50", math.nan, 400, "ms").reached
    assert exactly("FAILED", 0, 0).reached
    assert not exactly("FAILED", 1, 0).reached


def test_provider_and_rate_are_named_once_for_each_row() -> None:
    figures = [at_most("settle p50", 350.4, 400, "ms"), at_most("back after", 31.26, 30, "s"), plain("p50", "2 ms")]
    lines = [Line("slow", "500/s", figure) for figure in figures] + [Line("down", "20/s", exactly("FAILED", 1, 0))]
    assert figure_table(lines).splitlines()[2:] == [
        "| slow | 500/s | settle p50 | 400 ms | 350 ms | reached |",
        "|  |  | back after | 30 s | 31.3 s | **missed** |",
        "|  |  | p50 |  | 2 ms |  |",
        "| down | 20/s | FAILED | 0 | 1 | **missed** |",
    ]


def test_the_costs_say_when_the_client_had_no_processor_left() -> None:
    used = Usage({"payment-worker": 0.2, "payment-simulator": 0.1, "postgres": 0.3}, 1.0, 0, 0)
    report = Report(
        accepted=1_000,
        refused=1,
        unanswered=2,
        statuses={},
        latency_ms=[1, 2, 3, 4],
        late_ms=[0, 0, 30, 40],
        seconds=2,
        cpu_seconds=0.05,
    )
    line = cost_table([Cost("slow", report, used, 2.0)], processors=2).splitlines()[-1]
    assert line == (
        "| slow: 1,000 | 1.0 / 3.0 / 4.0 ms | 1 / 2 | 30.0 ms: the machine is the limit | 600 us | 200 us | 100 us"
        " | 50 us | 25% | 9% |"
    )
