"""Keeps the figures of the last 5 minutes: at most 300 points of each series."""

from collections import deque
from collections.abc import Sequence
from threading import Lock

POINTS_MAX = 300
HISTORY_SECONDS = 300.0
CARRIED_SECONDS = 30.0

Points = Sequence[tuple[float, float]]
"""Monotonic times and values, oldest first."""


class History:
    """The points of each series by its name. The names are those of our own groups and figures, so they are few."""

    def __init__(self) -> None:
        self._series: dict[str, deque[tuple[float, float]]] = {}
        self._lock = Lock()

    def add(self, name: str, at: float, value: float) -> None:
        """Add a point. The oldest point of a full series goes."""
        with self._lock:
            self._series.setdefault(name, deque(maxlen=POINTS_MAX)).append((at, value))

    def points(self, now: float) -> dict[str, Points]:
        """Return the points of each series that are not older than HISTORY_SECONDS."""
        with self._lock:
            return {
                name: tuple(point for point in series if now - point[0] <= HISTORY_SECONDS)
                for name, series in self._series.items()
            }


def grown(points: Points, now: float, seconds: float) -> tuple[float, float] | None:
    """Return by how much a series has grown within the last `seconds`, and the seconds between the two points.

    None if there are no two points in this time.
    """
    recent = [point for point in points if now - point[0] <= seconds]
    if len(recent) < 2:
        return None
    return recent[-1][1] - recent[0][1], recent[-1][0] - recent[0][0]


def per_second(points: Points, now: float, seconds: float) -> float | None:
    """Return the growth per second over the last `seconds`; None if it is not known."""
    found = grown(points, now, seconds)
    return None if found is None or found[1] <= 0 else found[0] / found[1]


def average(points: Points, now: float, seconds: float) -> float | None:
    """Return the mean of the values of the last `seconds`; None without any."""
    recent = [value for at, value in points if now - at <= seconds]
    return sum(recent) / len(recent) if recent else None


def steps(points: Points, now: float, number: int) -> list[float | None]:
    """Return `number` values over HISTORY_SECONDS at equal steps, oldest first: the last value of each step.

    A step without a point has the value before it, if that is not older than three slow samples, and None otherwise.
    """
    width = HISTORY_SECONDS / number
    last: dict[int, float] = {number - 1 - int((now - at) / width): value for at, value in points}
    values: list[float | None] = []
    known: tuple[int, float] | None = None
    for index in range(number):
        if index in last:
            known = index, last[index]
        carried = known is not None and (index - known[0]) * width <= CARRIED_SECONDS
        values.append(known[1] if known is not None and carried else None)
    return values
