"""Records the answers to the clients of a soak: accepted orders, replies to keys, and the status of each version."""

import itertools
import time
from collections import Counter

from msgspec import Struct, field

SETTLED = ("CONFIRMED", "FAILED", "CANCELLED")


class Seen(Struct):
    """An order as its client knows it: the status of each version, and the newest version that an answer has shown."""

    order_id: str
    statuses: dict[int, str] = field(default_factory=dict)
    newest: int = 0
    cancel_tried: bool = False


class OlderRead(Struct, frozen=True):
    """An answer that showed an older version than an earlier answer.

    `began` and `ended` are times of the monotonic clock, in seconds.
    """

    began: float
    ended: float
    what: str


class Ledger:
    """The load fills it. `problems` has the answers that break a promise in any case."""

    def __init__(self) -> None:
        self.orders: dict[str, Seen] = {}
        self.keys: dict[str, set[str]] = {}
        self.answers: Counter[str] = Counter()
        self.unanswered_posts = 0
        self.problems: list[str] = []
        self.older: list[OlderRead] = []

    def accepted(self, order_id: str) -> Seen:
        """Record a 201."""
        return self.orders.setdefault(order_id, Seen(order_id))

    def state(self, seen: Seen, version: int, status: str, floor: int, began: float) -> None:
        """Record the version that an answer showed. `floor` is the newest version known when its request began."""
        self.record_status(seen, version, status)
        if version < floor:
            what = f"{seen.order_id}: version {version} was read after version {floor}"
            self.older.append(OlderRead(began, time.monotonic(), what))
        seen.newest = max(seen.newest, version)

    def record_status(self, seen: Seen, version: int, status: str) -> None:
        """Record the status of a version, from an answer or an event. Two statuses of one version are a problem."""
        if seen.statuses.setdefault(version, status) != status:
            self.problems.append(f"{seen.order_id}: version {version} is {seen.statuses[version]} and {status}")

    def changed_after_settling(self) -> list[str]:
        """Return the orders whose settled status changed, except by a requested cancel (P6)."""
        found = []
        for seen in self.orders.values():
            statuses = [status for _, status in sorted(seen.statuses.items())]
            for before, after in itertools.pairwise(statuses):
                cancelled = (before, after) == ("CONFIRMED", "CANCELLED") and seen.cancel_tried
                if before in SETTLED and after != before and not cancelled:
                    found.append(f"{seen.order_id}: {before} became {after}")
        return found
