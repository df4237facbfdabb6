"""The figures of a run of the play desk: what was placed, what came of it, and how long orders took to settle."""

from collections import Counter, deque
from collections.abc import Sequence

from msgspec import Struct

SETTLE_TIMES_KEPT = 1_000
"""The newest settle times, from which the percentiles come."""
FOLLOWED_MAX = 5_000
"""Orders whose end the desk waits for. Further ones are placed and not followed."""
FOLLOW_SECONDS = 900.0
"""How long the desk waits for the end of an order."""


class OutcomeView(Struct, frozen=True):
    """The number of orders of one kind that ended in one way, or that were not accepted."""

    kind: str
    outcome: str
    orders: int


class FiguresView(Struct, frozen=True, rename="camel"):
    """The figures of a run. Settle times are in seconds, of the newest 1,000 orders; null without one.

    `open` are orders without an end yet, `skipped` those that were not placed in time.
    `notFollowed` are orders whose end the desk does not know. `keysBroken` must be 0: it counts repeated keys that gave
    another order.
    """

    placed: int
    open: int
    skipped: int
    not_followed: int
    keys_broken: int
    outcomes: list[OutcomeView]
    settle_p50: float | None
    settle_p95: float | None
    settle_max: float | None


class Figures:
    """Counts. Used from the event loop only."""

    def __init__(self) -> None:
        self.placed = 0
        self.skipped = 0
        self.not_followed = 0
        self.keys_broken = 0
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._times: deque[float] = deque(maxlen=SETTLE_TIMES_KEPT)
        self._open: dict[str, tuple[str, float]] = {}
        self._looked_at = 0

    def follow(self, order_id: str, kind: str, now: float) -> None:
        """Wait for the end of an order."""
        if len(self._open) >= FOLLOWED_MAX:
            self.not_followed += 1
        else:
            self._open[order_id] = kind, now

    def refused(self, kind: str, why: str) -> None:
        """Count an order that was not accepted."""
        self._outcomes[kind, why] += 1

    def to_look_up(self, most: int, now: float) -> list[str]:
        """Return some orders without an end, all of them in turn. Those that are too old are not followed any more."""
        for order_id, (_, since) in list(self._open.items()):
            if now - since < FOLLOW_SECONDS:
                break
            del self._open[order_id]
            self.not_followed += 1
        waiting = list(self._open)
        begin = self._looked_at if self._looked_at < len(waiting) else 0
        self._looked_at = begin + most
        return waiting[begin : begin + most]

    def settled(self, order_id: str, outcome: str, seconds: float) -> None:
        """Count the end of an order."""
        found = self._open.pop(order_id, None)
        if found is not None:
            self._outcomes[found[0], outcome] += 1
            self._times.append(seconds)

    def view(self) -> FiguresView:
        """Return the figures as they are now."""
        times = sorted(self._times)
        return FiguresView(
            self.placed,
            len(self._open),
            self.skipped,
            self.not_followed,
            self.keys_broken,
            [OutcomeView(kind, outcome, number) for (kind, outcome), number in sorted(self._outcomes.items())],
            _share(times, 0.5),
            _share(times, 0.95),
            times[-1] if times else None,
        )


def _share(times: Sequence[float], share: float) -> float | None:
    """Return the smallest time that this share of the sorted times does not exceed."""
    return times[min(len(times) - 1, int(share * len(times)))] if times else None
