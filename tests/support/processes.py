"""A process of a test. Each wait of the test fails when it ends unexpectedly."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.waiting import watched

_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGQUIT)


class Process(subprocess.Popen[Any]):
    """A child whose end is unexpected until the test sends an ending signal or calls `ends`."""

    may_end = False

    def send_signal(self, sig: int) -> None:
        """Send a signal. After an ending signal, its end is expected. `terminate` and `kill` call this method."""
        self.may_end |= sig in _ENDS
        super().send_signal(sig)

    def ends(self, limit_seconds: float = 20) -> int:
        """Wait for its end, which is then expected, and return the exit code."""
        self.may_end = True
        return self.wait(limit_seconds)

    @contextmanager
    def watched(self, name: str, said: Callable[[], str] = str) -> Iterator[None]:
        """Until the block ends, each wait fails if this process ends unexpectedly, and shows the end of its output."""

        def ending() -> str | None:
            code = None if self.may_end else self.poll()
            return None if code is None else f"exit code {code}"

        with watched(name, ending, said):
            yield
