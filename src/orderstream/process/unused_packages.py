"""Leaves packages out of a service process that its libraries import if they are installed, but it does not use."""

import contextlib
import sys
from collections.abc import Iterator

UNUSED = ("opentelemetry", "rich")
"""structlog imports rich for colourful tracebacks, and redis imports opentelemetry for metrics of its own.

They would take 4 MiB and 2 MiB of memory in each process.
"""


@contextlib.contextmanager
def left_out(*names: str) -> Iterator[None]:
    """Let imports of these packages fail inside the block, as if they were not installed. Later imports succeed."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
