"""The room for calls to the provider: lanes with reserved room, and room that all lanes share.

A lane cannot use the reserved room of another lane. So hanging voids delay no new order, new orders delay no void, and
repeated voids delay no first void.
"""

from collections.abc import Mapping
from typing import Literal, get_args

Lane = Literal["new", "retry", "void", "void_retry"]
"""`new` is a first authorization and `retry` a further one. `void` is a first void and `void_retry` a further one."""
LANES: tuple[Lane, ...] = get_args(Lane)

RESERVED_PERCENT: Mapping[Lane, int] = {"new": 50, "retry": 10, "void": 20, "void_retry": 10}
"""The share of the room that only this lane may use. All lanes share the rest."""
WAIT_SECONDS = 1.0
"""How long a lane keeps its place in the queue for shared room after its last request."""


class Lanes:
    """Counts the calls of each lane against `capacity`. Times are monotonic seconds that the caller passes in.

    If the capacity is below 10, some lanes have no reserved room. Such a lane waits in a queue for shared room, so that
    it makes progress although other lanes are never idle.
    """

    def __init__(self, capacity: int) -> None:
        self._reserved = {lane: capacity * RESERVED_PERCENT[lane] // 100 for lane in LANES}
        self._shared = capacity - sum(self._reserved.values())
        self._used = dict.fromkeys(LANES, 0)
        self._waiting_until: dict[Lane, float] = {}

    def room(self, lane: Lane, now: float) -> int:
        """Return the number of calls that may begin: the lane's unused reserved room, and unused shared room."""
        overflow = sum(self.overflow(other) for other in LANES)
        return self._own_room(lane) + max(0, self._shared - overflow - self._number_ahead(lane, now))

    def overflow(self, lane: Lane) -> int:
        """Return the number of calls of the lane that use shared room."""
        return max(0, self._used[lane] - self._reserved[lane])

    def take(self, lane: Lane) -> None:
        """Count a call that begins. The caller has checked that there is room."""
        self._used[lane] += 1
        self._waiting_until.pop(lane, None)

    def give(self, lane: Lane) -> None:
        """Count a call that needs no more room."""
        assert self._used[lane] > 0
        self._used[lane] -= 1

    def wait(self, lane: Lane, now: float) -> None:
        """Put the lane into the queue for shared room, or keep its place there, for WAIT_SECONDS."""
        if self._waiting_until.get(lane, now) < now:
            del self._waiting_until[lane]
        self._waiting_until[lane] = now + WAIT_SECONDS

    def _own_room(self, lane: Lane) -> int:
        return max(0, self._reserved[lane] - self._used[lane])

    def _number_ahead(self, lane: Lane, now: float) -> int:
        """Return how many lanes take shared room before this lane does."""
        number = 0
        for waiting, until in self._waiting_until.items():
            if waiting == lane:
                break
            number += until >= now and self._own_room(waiting) == 0
        return number
