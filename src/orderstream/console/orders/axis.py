"""A time axis for pictures on which a gap of more than a second takes a fixed width and has a label."""

from bisect import bisect_right
from collections.abc import Iterable

from msgspec import Struct

GAP_SECONDS = 1.0
"""A longer time without anything in it is compressed."""
WIDTH = 1_000.0
"""Units from the first to the last instant."""
GAP_WIDTH_MAX = 60.0
"""Units of a compressed gap. If there are many, each is narrower, so that all together take half of the axis."""
_NS = 1_000_000_000


class Break(Struct, frozen=True):
    """A compressed gap: its begin and its width in units, and its length in words."""

    x: float
    width: float
    label: str


class Axis:
    """Maps Unix times in nanoseconds to units from 0 to WIDTH."""

    def __init__(self, instants_ns: Iterable[int]) -> None:
        """`instants_ns` are all times that the picture shows."""
        self._instants = sorted(set(instants_ns)) or [0]
        steps = [after - before for before, after in zip(self._instants, self._instants[1:], strict=False)]
        gaps = [step > GAP_SECONDS * _NS for step in steps]
        shown_ns = sum(step for step, is_gap in zip(steps, gaps, strict=True) if not is_gap)
        number = sum(gaps)
        if not number:
            gap_width = 0.0
        elif shown_ns:
            gap_width = min(GAP_WIDTH_MAX, WIDTH / 2 / number)
        else:
            gap_width = WIDTH / number
        per_ns = (WIDTH - number * gap_width) / shown_ns if shown_ns else 0.0
        self._places = [0.0]
        self.breaks: list[Break] = []
        for step, is_gap in zip(steps, gaps, strict=True):
            if is_gap:
                self.breaks.append(Break(round(self._places[-1], 2), round(gap_width, 2), duration(step / _NS)))
            self._places.append(self._places[-1] + (gap_width if is_gap else step * per_ns))

    @property
    def begin_ns(self) -> int:
        """The first instant."""
        return self._instants[0]

    @property
    def seconds(self) -> float:
        """The time from the first to the last instant."""
        return (self._instants[-1] - self._instants[0]) / _NS

    def x(self, at_ns: int) -> float:
        """Return the place of a time. A time outside of the axis is at its nearer end."""
        index = bisect_right(self._instants, at_ns) - 1
        if index < 0:
            return 0.0
        if index == len(self._instants) - 1:
            return round(self._places[-1], 2)
        before, after = self._instants[index], self._instants[index + 1]
        share = (at_ns - before) / (after - before)
        return round(self._places[index] + share * (self._places[index + 1] - self._places[index]), 2)


def duration(seconds: float) -> str:
    """Return a length of time in words of two units at most: "8 ms", "1.2 s", "42 s", "3 min 4 s", "2 d 5 h"."""
    if seconds < 1:
        milliseconds = max(0.0, seconds * 1_000)
        return f"{milliseconds:.1f} ms" if 0 < milliseconds < 10 else f"{milliseconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    index = next(index for index, (_, length) in enumerate(units) if whole >= length)
    name, length = units[index]
    text = f"{whole // length:,} {name}"
    if index < len(units) - 1:
        small, small_length = units[index + 1]
        if rest := whole % length // small_length:
            text += f" {rest} {small}"
    return text
