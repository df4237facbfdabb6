"""A process of a test: each wait notices when it ends, unless the test has told it to end or waits for its end."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.waiting import watched

_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGQUIT)


class Process(subprocess.Popen[Any]):
    """A child whose end is a surprise until the test signals it or calls `ends`."""

    may_end = False

    def send_signal(self, sig: int) -> None:
        """Send a signal; one that asks for the end makes the end no surprise. `terminate` and `kill` come by here."""
        self.may_end |= sig in _ENDS
        super().send_signal(sig)

    def ends(self, limit_seconds: float = 20) -> int:
        """Wait for its end, which is no surprise then, and return the exit code."""
        self.may_end = True
        return self.wait(limit_seconds)

    @contextmanager
    def watched(self, name: str, said: Callable[[], str] = str) -> Iterator[None]:
        """Until the block ends, each wait fails when this process ends, and shows the last of what it has `said`."""

        def ending() -> str | None:
            code = None if self.may_end else self.poll()
            return None if code is None else f"exit code {code}"

        with watched(name, ending, said):
            yield
