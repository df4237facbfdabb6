"""The picture of a trace in docs/ shows the recorded spans, and nothing else."""

import re
from xml.etree import ElementTree

import pytest
from msgspec import structs

from orderstream.settings import SERVICES
from tests.support.collector import ReceivedSpan
from tests.support.trace_picture import PICTURE, PROCESSED, draw, recorded, rows, typical

SVG = "{http://www.w3.org/2000/svg}"
SPAN = ReceivedSpan(
    service="api-gateway",
    name="POST /orders",
    kind="SERVER",
    trace_id="0af7651916cd43dd8448eb211c80319c",
    span_id="a",
    parent_id="",
    tracestate="",
    attributes={"order.id": "order-1"},
    links=(),
    error=None,
    started_ns=1_000_000_000,
    ended_ns=1_004_500_000,
)
CHILD = structs.replace(
    SPAN,
    service="outbox-relay",
    name="send order.created.v1",
    span_id="b",
    parent_id="a",
    attributes={"order.id": "order-1", "kafka.topic": "order.created.v1"},
    started_ns=1_002_000_000,
    ended_ns=1_010_000_000,
)


def _texts(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]  # noqa: S314 - ours


def _bars(picture: str) -> list[tuple[float, float]]:
    """Return x and width of the bar of each row."""
    found = []
    for group in ElementTree.fromstring(picture).iter(f"{SVG}g"):  # noqa: S314 - ours
        bar = group.find(f"{SVG}rect")
        assert bar is not None
        found.append((float(bar.attrib["x"]), float(bar.attrib["width"])))
    return found


def test_the_picture_in_the_documents_is_drawn_from_the_recorded_spans() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(recorded())


def test_the_recorded_spans_are_those_of_a_confirmed_order() -> None:
    spans = recorded()
    assert {span.service for span in spans} <= set(SERVICES)
    processed = sorted(span.name.removeprefix("process ") for span in spans if span.kind == "CONSUMER")
    assert processed == PROCESSED
    assert len({span.attributes["order.id"] for span in spans if "order.id" in span.attributes}) == 1


def test_a_child_comes_after_its_parent_and_one_step_further_in() -> None:
    (root, child) = rows([CHILD, SPAN])
    assert (root.span, root.depth, root.start_ms, root.duration_ms) == (SPAN, 0, 0.0, 4.5)
    assert (child.span, child.depth, child.start_ms, child.duration_ms) == (CHILD, 1, 2.0, 8.0)


def test_children_are_sorted_by_their_start() -> None:
    earlier = structs.replace(CHILD, span_id="c", started_ns=1_001_000_000)
    assert [row.span.span_id for row in rows([SPAN, CHILD, earlier])] == ["a", "c", "b"]


@pytest.mark.parametrize("spans", [[], [SPAN, structs.replace(CHILD, parent_id="lost")]])
def test_spans_without_exactly_one_root_are_refused(spans: list[ReceivedSpan]) -> None:
    with pytest.raises(ValueError, match="one root is needed"):
        draw(spans)


def test_a_row_shows_name_service_topic_start_and_duration() -> None:
    texts = _texts(draw([SPAN, CHILD]))
    assert texts[0] == "One order: 2 spans of 2 services in 10.0 ms"
    assert texts[1].endswith("order.id order-1")
    assert texts[-8:] == [
        *("POST /orders", "api-gateway", "+0.0 ms", "4.5 ms"),
        *("send order.created.v1", "outbox-relay  ·  kafka.topic order.created.v1", "+2.0 ms", "8.0 ms"),
    ]


def test_bars_are_to_scale() -> None:
    ((root_x, root_width), (child_x, child_width)) = _bars(draw([SPAN, CHILD]))
    pixels_per_ms = root_width / 4.5
    assert child_x - root_x == pytest.approx(2 * pixels_per_ms, abs=0.2)
    assert child_width == pytest.approx(8 * pixels_per_ms, abs=0.2)


def test_the_axis_has_round_times_up_to_the_end() -> None:
    ticks = [text for text in _texts(draw([SPAN, CHILD])) if re.fullmatch(r"[0-9.]+ ms", text)][:6]
    assert ticks == ["0 ms", "2 ms", "4 ms", "6 ms", "8 ms", "10 ms"]


def test_a_name_with_markup_is_shown_as_text() -> None:
    assert "<script>" in _texts(draw([structs.replace(SPAN, name="<script>")]))


def test_the_picture_loads_nothing_and_runs_nothing() -> None:
    picture = PICTURE.read_text(encoding="utf-8")
    assert not re.search(r"<script|<image|<foreignObject|href|@import|@font-face|url\(|\bon\w+=", picture)
    assert re.findall(r"https?://[^\"]+", picture) == ["http://www.w3.org/2000/svg"]


def test_the_typical_trace_is_the_median_of_those_with_the_most_spans() -> None:
    traces = [
        [structs.replace(SPAN, ended_ns=SPAN.started_ns + ns), CHILD] for ns in (90_000_000, 30_000_000, 60_000_000)
    ]
    assert typical([[SPAN], *traces, [SPAN]]) == traces[2]
