"""Arranges the spans of a trace as rows of a waterfall. All functions are pure."""

from collections import defaultdict
from collections.abc import Sequence

from msgspec import Struct

from orderstream.console.orders.axis import Axis, Break, duration
from orderstream.console.traces.store import StoredSpan, Value

ROWS_MAX = 300
"""Spans that one waterfall shows. The others are counted."""
BAR_MIN_WIDTH = 3.0
"""Units of the shortest bar, so that it can be seen."""


class SpanRow(Struct, frozen=True):
    """A span in the waterfall. `x` and `width` are units of the axis. `depth` counts the spans above it."""

    span: StoredSpan
    depth: int
    x: float
    width: float
    start: str
    length: str
    attributes: Sequence[tuple[str, Value]]

    @property
    def is_orphan(self) -> bool:
        """Whether the parent span is not in the trace."""
        return self.depth == 0 and bool(self.span.parent_id)


class Waterfall(Struct, frozen=True):
    """The spans of one trace, each below its parent, with their time axis."""

    rows: Sequence[SpanRow]
    breaks: Sequence[Break]
    length: str
    services: Sequence[str]
    """In the order of their first span. The index is the number of the service's colour."""
    errors: int
    left_out: int


def waterfall(spans: Sequence[StoredSpan]) -> Waterfall | None:
    """Return the waterfall of a trace, or None if there is no span."""
    if not spans:
        return None
    by_start = sorted(spans, key=lambda span: (span.started_ns, span.span_id))
    ordered = _below_parents(by_start)
    shown = ordered[:ROWS_MAX]
    axis = Axis(at for span, _ in shown for at in (span.started_ns, max(span.started_ns, span.ended_ns)))
    return Waterfall(
        rows=[_row(axis, span, depth) for span, depth in shown],
        breaks=axis.breaks,
        length=duration(axis.seconds),
        services=list(dict.fromkeys(span.service for span in by_start)),
        errors=sum(span.error is not None for span in spans),
        left_out=len(ordered) - len(shown),
    )


def _below_parents(spans: Sequence[StoredSpan]) -> list[tuple[StoredSpan, int]]:
    """Return the spans in the order of the tree, with their depth. A span without its parent is a root.

    Spans that name each other as parents are roots too, because anyone may send spans.
    """
    known = {span.span_id for span in spans}
    children: dict[str, list[StoredSpan]] = defaultdict(list)
    for span in spans:
        children[span.parent_id if span.parent_id in known and span.parent_id != span.span_id else ""].append(span)
    ordered: dict[str, tuple[StoredSpan, int]] = {}
    for root in (*children[""], *spans):
        waiting = [(root, 0)]
        while waiting:
            span, depth = waiting.pop()
            if span.span_id not in ordered:
                ordered[span.span_id] = (span, depth)
                waiting += [(child, depth + 1) for child in reversed(children.get(span.span_id, []))]
    return list(ordered.values())


def _row(axis: Axis, span: StoredSpan, depth: int) -> SpanRow:
    ended_ns = max(span.started_ns, span.ended_ns)
    x = axis.x(span.started_ns)
    width = max(BAR_MIN_WIDTH, axis.x(ended_ns) - x)
    return SpanRow(
        span=span,
        depth=depth,
        x=min(x, 1_000.0 - width),
        width=round(width, 2),
        start=duration((span.started_ns - axis.begin_ns) / 1e9),
        length=duration((ended_ns - span.started_ns) / 1e9),
        attributes=sorted(span.attributes.items()),
    )
