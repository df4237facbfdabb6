"""The time axis, the timeline and the waterfall of an order, as pure functions."""

from datetime import timedelta
from typing import Any

import pytest

from orderstream.console.orders import timeline
from orderstream.console.orders.axis import WIDTH, Axis, duration
from orderstream.console.orders.timeline import ENTRIES_MAX, Entry
from orderstream.console.orders.waiting import Live, Rules, waiting_for
from orderstream.console.orders.waterfall import ROWS_MAX, waterfall
from orderstream.console.traces.store import StoredSpan
from orderstream.settings import Settings
from tests.unit.console.orders.rows import CREATED, NOW, ago, order, payment, reservation, stored

S = 1_000_000_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0042, "4.2 ms"),
        (0.25, "250 ms"),
        (1.24, "1.2 s"),
        (42, "42 s"),
        (184, "3 min 4 s"),
        (7_200, "2 h"),
        (190_800, "2 d 5 h"),
        (-1, "0 ms"),
    ],
)
def test_a_length_of_time_has_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_gap_of_more_than_a_second_is_compressed_and_labelled() -> None:
    axis = Axis([0, S // 2, 42 * S + S // 2, 43 * S])
    assert [(gap.label, gap.width) for gap in axis.breaks] == [("42 s", 60.0)]
    assert axis.x(0) == 0
    assert axis.x(S // 2) == 470
    assert axis.x(42 * S + S // 2) == 530
    assert axis.x(43 * S) == WIDTH
    assert axis.x(21 * S + S // 2) == pytest.approx(500)


def test_an_axis_keeps_its_order_and_its_width_with_any_times() -> None:
    for instants in ([], [5], [0, 10 * S], [n * 100 * S for n in range(500)], [0, 1, 2, 10**19]):
        axis = Axis(instants)
        places = [axis.x(at) for at in sorted(instants)]
        assert places == sorted(places)
        assert all(0 <= place <= WIDTH + 0.01 for place in places)
        assert axis.x(-(10**20)) == 0


def test_the_entries_are_in_the_order_of_time_with_their_gaps() -> None:
    rows = stored(
        order("CONFIRMED", payment="authorized", stock="reserved", updated_at=ago(13), version=3),
        payment("AUTHORIZED", attempts=2),
        reservation("RESERVED"),
    )
    shown = timeline.timeline(timeline.decisions(rows))
    assert [step.entry.title for step in shown.steps] == [
        "Order accepted",
        "Payment AUTHORIZED",
        "Stock reserved",
        "Order CONFIRMED",
    ]
    assert [step.is_after_gap for step in shown.steps] == [False, True, False, False]
    assert shown.steps[1].since == "5.0 s"
    assert shown.steps[1].entry.badges == ("2 attempts",)
    assert [name for name, _ in shown.lanes] == ["Decisions"]


def test_a_long_history_shows_its_begin_and_its_end() -> None:
    entries = [Entry(at=CREATED + timedelta(seconds=n), kind="event", title=str(n)) for n in range(1_000)]
    shown = timeline.timeline(entries)
    assert len(shown.steps) == ENTRIES_MAX
    assert (shown.left_out, shown.left_out_after) == (1_000 - ENTRIES_MAX, ENTRIES_MAX // 2)
    assert shown.steps[0].entry.title == "0"
    assert shown.steps[-1].entry.title == "999"


def test_pending_work_is_the_last_entry() -> None:
    rows = stored()
    waiting = waiting_for(rows, Rules.of(Settings.model_validate({})), Live())
    shown = timeline.timeline([*timeline.decisions(rows), *timeline.pending(waiting, NOW)])
    assert shown.steps[-1].entry.kind == "pending"


def span(span_id: str, parent: str = "", begin: int = 0, end: int = 1, **members: Any) -> StoredSpan:
    return StoredSpan(
        trace_id="t",
        span_id=span_id,
        parent_id=parent,
        service="s",
        name=span_id,
        started_ns=begin,
        ended_ns=end,
        **members,
    )


def test_spans_are_below_their_parents_with_their_place() -> None:
    shown = waterfall(
        [span("c", "b", 30, 40), span("a", "", 0, 100), span("b", "a", 10, 60), span("d", "gone", 80, 90)]
    )
    assert shown is not None
    assert [(row.span.span_id, row.depth, row.x, row.width) for row in shown.rows] == [
        ("a", 0, 0, 1_000),
        ("b", 1, 100, 500),
        ("c", 2, 300, 100),
        ("d", 0, 800, 100),
    ]
    assert [row.is_orphan for row in shown.rows] == [False, False, False, True]


def test_spans_that_name_each_other_as_parents_are_shown() -> None:
    shown = waterfall([span("a", "b"), span("b", "a"), span("c", "c")])
    assert shown is not None
    assert sorted(row.span.span_id for row in shown.rows) == ["a", "b", "c"]


def test_a_waterfall_is_bounded_and_counts_errors() -> None:
    spans = [span(f"{number:04}", begin=number, end=number - 5, error="boom") for number in range(ROWS_MAX + 5)]
    shown = waterfall(spans)
    assert shown is not None
    assert (len(shown.rows), shown.left_out, shown.errors) == (ROWS_MAX, 5, ROWS_MAX + 5)
    assert all(row.x >= 0 and row.x + row.width <= WIDTH + 0.01 for row in shown.rows)
    assert waterfall([]) is None
