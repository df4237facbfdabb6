"""The bounded store of traces: what it finds, what leaves it, and that its count of bytes is right."""

import tracemalloc

import pytest

from orderstream.console.traces import store as limits
from orderstream.console.traces.store import Link, StoredSpan, TraceStore
from tests.unit.console.traces.spans import stored, trace_id


def order_id(trace: int) -> str:
    return f"01a2176d-9db0-73f7-9e75-{trace:012x}"


def whole_trace(trace: int, spans: int = 25) -> list[StoredSpan]:
    return [stored(trace, span) for span in range(spans)]


def test_the_spans_of_a_trace_come_back_in_the_order_of_their_start() -> None:
    store = TraceStore()
    late, early, other = stored(0, 2), stored(0, 1), stored(1, 1)
    store.add([late, other, early])
    assert store.spans_of(trace_id(0)) == [early, late]
    assert store.spans_of(trace_id(2)) == []


def test_a_span_that_is_sent_twice_is_there_once() -> None:
    store = TraceStore()
    store.add([stored()])
    store.add([stored()])
    assert store.spans_of(trace_id(0)) == [stored()]


def test_spans_that_arrive_after_their_trace_was_compressed_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOOSE_MAX_BYTES", 0)
    store = TraceStore()
    spans = whole_trace(0, 5)
    for span in spans:
        store.add([span])
    assert store.spans_of(trace_id(0)) == spans


def test_the_trace_of_an_order_is_that_of_the_request_that_placed_it() -> None:
    store = TraceStore()
    read = stored(7, name="GET /orders/{order_id}", attributes={"order.id": order_id(0)})
    placed = stored(0, name="POST /orders")
    links = (Link(trace_id(0), "1" * 16),)
    cancel = stored(8, name="POST /orders/{order_id}/cancel", attributes={"order.id": order_id(0)}, links=links)
    store.add([read, placed, cancel])
    assert store.trace_of_order(order_id(0)) == trace_id(0)
    assert store.traces_of_order(order_id(0)) == (trace_id(0), trace_id(8), trace_id(7))
    assert store.trace_of_order(order_id(1)) is None


def test_a_trace_is_found_by_the_trace_to_which_it_links() -> None:
    store = TraceStore()
    store.add([stored(0), stored(5, links=(Link(trace_id(0), "1" * 16), Link(trace_id(0), "2" * 16)))])
    assert store.linking_to(trace_id(0)) == (trace_id(5),)
    assert store.linking_to(trace_id(5)) == ()


def test_a_link_within_a_trace_is_no_link_to_another() -> None:
    store = TraceStore()
    store.add([stored(0, links=(Link(trace_id(0), "1" * 16),))])
    assert store.linking_to(trace_id(0)) == ()


def test_the_oldest_traces_leave_a_full_store_with_their_index() -> None:
    store = TraceStore(max_bytes=50_000)
    for trace in range(100):
        store.add([stored(trace, 0, name="POST /orders", links=(Link("f" * 32, "1" * 16),)), stored(trace, 1)])
    figures = store.figures()
    assert figures.bytes <= 50_000
    assert 0 < figures.traces < 100
    assert figures.traces_evicted == 100 - figures.traces
    kept = range(figures.traces_evicted, 100)
    assert [trace for trace in range(100) if store.spans_of(trace_id(trace))] == list(kept)
    assert [trace for trace in range(100) if store.trace_of_order(order_id(trace))] == list(kept)
    assert [trace for trace in range(100) if store.traces_of_order(order_id(trace))] == list(kept)
    assert set(store.linking_to("f" * 32)) == {trace_id(trace) for trace in kept}
    assert figures.oldest_span_at_ns == stored(kept[0]).started_ns


def test_the_number_of_traces_is_limited() -> None:
    store = TraceStore(traces_max=10)
    store.add([stored(trace) for trace in range(25)])
    assert store.figures().traces == 10
    assert store.spans_of(trace_id(24)) == [stored(24)]


@pytest.mark.parametrize("limit", ["SPANS_PER_TRACE_MAX", "TRACE_MAX_BYTES"])
def test_a_trace_that_is_too_large_loses_its_last_spans_and_says_so(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, limit, 3 if limit == "SPANS_PER_TRACE_MAX" else 1_800)
    store = TraceStore()
    store.add([*whole_trace(0, 10), stored(1)])
    left = len(store.spans_of(trace_id(0)))
    assert 0 < left < 10
    assert store.dropped_of(trace_id(0)) == 10 - left
    assert store.dropped_of(trace_id(1)) == 0
    assert store.figures().spans_dropped == 10 - left


def test_one_order_with_many_traces_keeps_the_first_and_the_newest() -> None:
    store = TraceStore()
    count = limits.TRACES_PER_KEY_MAX + 50
    same = {"order.id": "o-1"}
    store.add([stored(0, name="POST /orders", attributes=same)])
    store.add([stored(trace, attributes=same) for trace in range(1, count)])
    found = store.traces_of_order("o-1")
    assert len(found) == limits.TRACES_PER_KEY_MAX
    assert (found[0], found[-1]) == (trace_id(0), trace_id(count - 1))
    assert store.trace_of_order("o-1") == trace_id(0)


def test_an_empty_store_counts_nothing_after_everything_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOOSE_MAX_BYTES", 5_000)
    store = TraceStore(max_bytes=40_000, traces_max=20)
    for trace in range(200):
        store.add([stored(trace % 60, span, links=(Link(trace_id(trace), "1" * 16),)) for span in range(trace % 7)])
    assert store.figures().bytes <= 40_000
    store._max_bytes = 0
    store.add([stored(500)])
    figures = store.figures()
    assert (figures.traces, figures.spans, figures.bytes) == (0, 0, 0)
    assert (store._loose_bytes, store._of_order, store._linking, store._placed) == (0, {}, {}, {})


def test_the_count_of_bytes_is_not_less_than_the_memory_of_a_full_store() -> None:
    spans = whole_trace(0)
    tracemalloc.start()
    try:
        store = TraceStore(max_bytes=4 << 20)
        before, _ = tracemalloc.get_traced_memory()
        for trace in range(1_500):
            store.add([span_of(span, trace) for span in spans])
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    figures = store.figures()
    assert figures.traces_evicted
    assert after - before <= 1.2 * figures.bytes


def span_of(span: StoredSpan, trace: int) -> StoredSpan:
    return stored(trace, int(span.span_id, 16) - 1)
