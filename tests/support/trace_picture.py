"""Draws docs/trace.svg: the trace of one order, as a waterfall of the spans that a real run sent to a collector.

`python -m tests.support.trace_picture` starts a system of its own, places orders one after the other, and writes the
spans of a typical one to trace_of_one_order.json beside this module, and the picture to docs/.
"""

import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import httpx
import msgspec
from msgspec import Struct

from orderstream.local.processes.state import checkout
from tests.load.system import BENCH_DIR, exclusive_system
from tests.support import collector
from tests.support.collector import Collector, ReceivedSpan, roots

SPANS = Path(__file__).with_name("trace_of_one_order.json")
PICTURE = checkout() / "docs" / "trace.svg"
WARM_UP_ORDERS = 20
"""The first orders are slower: each process runs each of its statements for the first time."""
ORDERS = 60
PROCESSED = ["inventory.reserved.v1", "order.created.v1", "payment.authorized.v1", "payment.authorized.v1"]
"""What the workers read of an order that becomes CONFIRMED; two of them read payment.authorized."""
WAIT_SECONDS = 30

WIDTH = 960
MARGIN = 16
LABELS = 350
"""Width of the column with the names of the spans."""
TIMES = 96
"""Width of the column with start and duration, right of the bars."""
HEADER = 84
ROW = 36
INDENT = 12
TICKS_MAX = 8
SHORTEST_BAR = 2
COLOURS = {
    "api-gateway": "#0969da",
    "outbox-relay": "#8250df",
    "payment-worker": "#bc4c00",
    "inventory-worker": "#1a7f37",
    "order-service": "#bf3989",
}
OTHER_COLOUR = "#57606a"

# The picture has its own background, so that it is legible on light and on dark pages.
_FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">
<title>The trace of one order: {count} spans of {services} services in {duration} ms</title>
<style>
text {{ font-family: "Segoe UI", Helvetica, Arial, sans-serif; font-size: 12px; fill: #1f2328; }}
.head {{ font-size: 15px; font-weight: 600; }}
.name {{ font-weight: 600; }}
.more, .tick {{ font-size: 11px; fill: #57606a; }}
.time {{ font-size: 11px; font-variant-numeric: tabular-nums; text-anchor: end; }}
.tick {{ text-anchor: middle; }}
.grid {{ stroke: #d0d7de; }}
</style>
<rect x="0.5" y="0.5" width="{inner_width}" height="{inner_height}" rx="6" fill="#ffffff" stroke="#d0d7de"/>
<text class="head" x="{margin}" y="28">{heading}</text>
<text class="more" x="{margin}" y="46">{subheading}</text>
<text class="time" x="{times_x}" y="{times_y}">start, duration</text>
{body}
</svg>
"""
_TICK = """\
<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>
<text class="tick" x="{x:.1f}" y="{label_y}">{label}</text>"""
_ROW = """\
<g>
<text class="name" x="{label_x}" y="{name_y}">{name}</text>
<text class="more" x="{label_x}" y="{more_y}">{more}</text>
<rect x="{bar_x:.1f}" y="{bar_y}" width="{bar_width:.1f}" height="14" rx="2" fill="{colour}"/>
<text class="time" x="{time_x}" y="{name_y}">+{start:.1f} ms</text>
<text class="time" x="{time_x}" y="{more_y}">{duration:.1f} ms</text>
</g>"""


class Row(Struct, frozen=True):
    """A span with its depth in the tree, and its start and duration in ms since the trace began."""

    span: ReceivedSpan
    depth: int
    start_ms: float
    duration_ms: float


def rows(spans: Sequence[ReceivedSpan]) -> list[Row]:
    """Return the spans of one trace as a tree: each span before its children, children by their start.

    Raises ValueError unless the spans have exactly one root.
    """
    found = roots(spans)
    if len(found) != 1:
        raise ValueError(f"one root is needed, there are {len(found)}")
    (root,) = found
    began_ns = min(span.started_ns for span in spans)

    def walk(span: ReceivedSpan, depth: int) -> Iterator[Row]:
        duration_ns = span.ended_ns - span.started_ns
        yield Row(span, depth, (span.started_ns - began_ns) / 1e6, duration_ns / 1e6)
        children = [child for child in spans if child.parent_id == span.span_id]
        for child in sorted(children, key=lambda child: (child.started_ns, child.span_id)):
            yield from walk(child, depth + 1)

    return list(walk(root, 0))


def draw(spans: Sequence[ReceivedSpan]) -> str:
    """Return the waterfall of one trace as an SVG without scripts, fonts or links. Raises ValueError as `rows` does."""
    tree = rows(spans)
    total_ms = max(row.start_ms + row.duration_ms for row in tree)
    services = {row.span.service for row in tree}
    order_ids = sorted({str(span.attributes["order.id"]) for span in spans if "order.id" in span.attributes})
    height = HEADER + len(tree) * ROW + MARGIN
    pixels_per_ms = (WIDTH - 2 * MARGIN - LABELS - TIMES) / total_ms
    body = [_tick(ms, pixels_per_ms, height) for ms in _ticks(total_ms)]
    body += [_row(row, number, pixels_per_ms) for number, row in enumerate(tree)]
    return _FRAME.format(
        width=WIDTH,
        height=height,
        inner_width=WIDTH - 1,
        inner_height=height - 1,
        margin=MARGIN,
        times_x=WIDTH - MARGIN,
        times_y=HEADER - 16,
        count=len(tree),
        services=len(services),
        duration=f"{total_ms:.1f}",
        heading=f"One order: {len(tree)} spans of {len(services)} services in {total_ms:.1f} ms",
        subheading=escape(f"trace {tree[0].span.trace_id}  ·  order.id {', '.join(order_ids)}"),
        body="\n".join(body),
    )


def _ticks(total_ms: float) -> list[float]:
    """Return round times from 0 to the end, TICKS_MAX at most."""
    steps = (digit * 10**power for power in range(-1, 7) for digit in (1, 2, 5))
    step = next(step for step in steps if total_ms / step < TICKS_MAX)
    return [number * step for number in range(int(total_ms / step) + 1)]


def _tick(ms: float, pixels_per_ms: float, height: int) -> str:
    x = MARGIN + LABELS + ms * pixels_per_ms
    return _TICK.format(x=x, top=HEADER - 10, bottom=height - MARGIN, label_y=HEADER - 16, label=f"{ms:g} ms")


def _row(row: Row, number: int, pixels_per_ms: float) -> str:
    top = HEADER + number * ROW
    more = row.span.service
    if topic := row.span.attributes.get("kafka.topic"):
        more += f"  ·  kafka.topic {topic}"
    if database := row.span.attributes.get("db.system.name"):
        more += f"  ·  {database}"
    return _ROW.format(
        label_x=MARGIN + row.depth * INDENT,
        name_y=top + 12,
        more_y=top + 26,
        name=escape(row.span.name),
        more=escape(more),
        bar_x=MARGIN + LABELS + row.start_ms * pixels_per_ms,
        bar_y=top + 6,
        bar_width=max(SHORTEST_BAR, row.duration_ms * pixels_per_ms),
        colour=COLOURS.get(row.span.service, OTHER_COLOUR),
        time_x=WIDTH - MARGIN,
        start=row.start_ms,
        duration=row.duration_ms,
    )


def recorded() -> list[ReceivedSpan]:
    """Return the spans of the run that docs/trace.svg shows."""
    return msgspec.json.decode(SPANS.read_bytes(), type=list[ReceivedSpan])


def typical(traces: Sequence[list[ReceivedSpan]]) -> list[ReceivedSpan]:
    """Return the trace of median duration among those with the most spans.

    An order has a span less if order-service reads both of its facts in one batch.
    """
    most = max(map(len, traces))
    by_duration = sorted((trace for trace in traces if len(trace) == most), key=_duration_ns)
    return by_duration[len(by_duration) // 2]


def _duration_ns(trace: Sequence[ReceivedSpan]) -> int:
    return max(span.ended_ns for span in trace) - min(span.started_ns for span in trace)


def _place(client: httpx.Client, spans: Collector) -> list[ReceivedSpan]:
    """Place an order and return its trace when all of it has arrived."""
    order = {"userId": "u-1", "items": [{"sku": "SKU-1", "qty": 1, "price": "129.00"}], "amount": "129.00"}
    answer = client.post("/orders", json=order | {"currency": "USD"}).raise_for_status()
    trace_id = answer.headers["traceresponse"].split("-")[1]

    def complete(_: Sequence[ReceivedSpan]) -> bool:
        # A span of a record ends after those of the events that answer it, and spans arrive in the order of their ends.
        trace = spans.trace(trace_id)
        processed = sorted(span.name.removeprefix("process ") for span in trace if span.kind == "CONSUMER")
        return processed == PROCESSED and len(roots(trace)) == 1

    spans.wait_for(complete, WAIT_SECONDS, "the whole trace of an order")
    return spans.trace(trace_id)


def main() -> None:
    """Record the trace of an order that a fresh system completes, and draw it."""
    with (
        collector.running() as spans,
        exclusive_system(BENCH_DIR, OTEL_EXPORTER_OTLP_ENDPOINT=spans.endpoint) as running,
        httpx.Client(base_url=running.urls["BASE_URL"], timeout=WAIT_SECONDS) as client,
    ):
        traces = [_place(client, spans) for _ in range(ORDERS)][WARM_UP_ORDERS:]
    SPANS.write_bytes(msgspec.json.format(msgspec.json.encode(typical(traces)), indent=1) + b"\n")
    PICTURE.write_text(draw(recorded()), encoding="utf-8")
    sys.stdout.write(f"{PICTURE}\n")


if __name__ == "__main__":
    main()
