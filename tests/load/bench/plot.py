"""Draws the plot of `make bench` as SVG that is readable on a light and on a dark page."""

from collections.abc import Callable, Sequence
from html import escape

from tests.load.bench import contestants, results
from tests.load.bench.results import Result

_WIDTH, _LEFT, _RIGHT = 760, 130, 110
_BAR, _GAP, _TITLE = 18, 8, 44
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .title { font-weight: 600 }
  .bar { fill: #8c959f }
  .ours { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .bar { fill: #6e7681 }
    .ours { fill: #58a6ff }
  }
"""

Panel = tuple[str, str, Callable[[float], str]]
"""A title, the name of the figure, and how to write its value."""
PANELS: Sequence[Panel] = (
    ("Settled orders per second (more is better)", "settled_per_second", lambda value: f"{value:,.0f}"),
    ("CPU per order, saturated (less is better)", "cpu_us_saturated", lambda value: f"{value / 1e3:,.2f} ms"),
    ("Settle time p99 at 40 orders/s (less is better)", "settle_p99_ms_40", lambda value: f"{value:,.0f} ms"),
    ("CPU per order at 40 orders/s (less is better)", "cpu_us_40", lambda value: f"{value / 1e3:,.1f} ms"),
)


def draw(result: Result) -> str:
    """Return the plot: a panel of bars for each of PANELS. A contestant without a figure has no bar in its panel."""
    parts: list[str] = []
    y = 0
    for title, figure, words in PANELS:
        medians = {name: spread.median for name in result.names if (spread := results.of(result, name, figure))}
        if not medians:
            continue
        parts.append(f'<text class="title" x="0" y="{y + 28}">{escape(title)}</text>')
        y += _TITLE
        largest = max(medians.values())
        for name, value in medians.items():
            parts += _bar(result.names[name], value / largest, words(value), y, is_ours=name == contestants.OURS)
            y += _BAR + _GAP
    parts.append(f'<text x="0" y="{y + 28}">Measured on {escape(result.date)}, {result.machine.cores} cores</text>')
    height = y + 40
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">'
    label = "<title>OrderStream compared with what people would use instead</title>"
    return "\n".join([head, label, f"<style>{_STYLE}</style>", *parts, "</svg>", ""])


def _bar(name: str, share: float, words: str, y: int, *, is_ours: bool) -> list[str]:
    width = max(1.0, share * (_WIDTH - _LEFT - _RIGHT))
    middle = y + _BAR * 0.72
    kind = "ours" if is_ours else "bar"
    return [
        f'<text x="0" y="{middle:.1f}">{escape(name)}</text>',
        f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>',
        f'<text x="{_LEFT + width + 8:.1f}" y="{middle:.1f}">{escape(words)}</text>',
    ]
