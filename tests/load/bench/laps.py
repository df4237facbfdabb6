"""How long the steps of a benchmark took. Each lap ends where the next one begins, so that they make up the whole."""

import time
from collections.abc import Callable

from tests.load.bench.results import Step


class Laps:
    """The steps until now. The first one begins when this object is created."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps: list[Step] = []
        self._clock = clock
        self._began = clock()

    @property
    def seconds(self) -> float:
        """The seconds of all steps until now."""
        return sum(step.seconds for step in self.steps)

    def end(self, name: str) -> None:
        """End the step `name`, and begin the next one."""
        now = self._clock()
        self.steps.append(Step(name, round(now - self._began, 1)))
        self._began = now
