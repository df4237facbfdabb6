"""Keeps the figures of the last 5 minutes: at most 150 points of each series."""

from collections import deque
from collections.abc import Sequence
from threading import Lock

POINTS_MAX = 150
HISTORY_SECONDS = 300.0

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
