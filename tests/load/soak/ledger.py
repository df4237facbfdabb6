"""What the clients of a soak were told: every accepted order, every reply to a key, every state that was ever seen."""

import itertools
import time
from collections import Counter

from msgspec import Struct, field

SETTLED = ("CONFIRMED", "FAILED", "CANCELLED")


class Seen(Struct):
    """An order as its client knows it: status by version, and the newest state that an answer has shown."""

    order_id: str
    statuses: dict[int, str] = field(default_factory=dict)
    newest: int = 0
    cancel_tried: bool = False


class OlderRead(Struct, frozen=True):
    """An answer that showed an older state than one before it; both times are monotonic."""

    began: float
    ended: float
    what: str


class Ledger:
    """Filled by the load while it runs; `problems` holds what no later book-keeping could excuse."""

    def __init__(self) -> None:
        self.orders: dict[str, Seen] = {}
        self.keys: dict[str, set[str]] = {}
        self.answers: Counter[str] = Counter()
        self.unanswered_posts = 0
        self.problems: list[str] = []
        self.older: list[OlderRead] = []

    def accepted(self, order_id: str) -> Seen:
        """Note a 201."""
        return self.orders.setdefault(order_id, Seen(order_id))

    def state(self, seen: Seen, version: int, status: str, floor: int, began: float) -> None:
        """Note a state that an answer showed; `floor` is the newest that was known when its request began."""
        self.tell(seen, version, status)
        if version < floor:
            what = f"{seen.order_id}: version {version} was read after version {floor}"
            self.older.append(OlderRead(began, time.monotonic(), what))
        seen.newest = max(seen.newest, version)

    def tell(self, seen: Seen, version: int, status: str) -> None:
        """Note a state wherever it was seen; two statuses of one version are a problem."""
        if seen.statuses.setdefault(version, status) != status:
            self.problems.append(f"{seen.order_id}: version {version} is {seen.statuses[version]} and {status}")

    def changed_after_settling(self) -> list[str]:
        """Return the orders whose settled status changed otherwise than by a cancel that was asked for (P6)."""
        found = []
        for seen in self.orders.values():
            statuses = [status for _, status in sorted(seen.statuses.items())]
            for before, after in itertools.pairwise(statuses):
                cancelled = (before, after) == ("CONFIRMED", "CANCELLED") and seen.cancel_tried
                if before in SETTLED and after != before and not cancelled:
                    found.append(f"{seen.order_id}: {before} became {after}")
        return found
