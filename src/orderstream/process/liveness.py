"""Ends a process whose loop has stopped to come round: a supervisor that restarts what exits needs nothing more.

Compose restarts a container that exits, and not one that is unhealthy. So the process itself watches its loop.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

from orderstream.process.drain import EXIT_FAILED
from orderstream.telemetry import logs

WATCH_SECONDS = 5.0
BACKSTOP_SECONDS = 10.0
"""How much later a timer in C ends the process, if a call that holds Python's lock stops this thread too."""


def exit_when_stuck(beat: Callable[[], float], limit_seconds: float) -> None:
    """Watch from a thread that `beat` (a monotonic time) is never older than the limit; else log `stuck`, write where
    every thread is to stderr, and end the process with code 1. That loses nothing: what is under way is repeated."""
    threading.Thread(target=_watch, args=(beat, limit_seconds), name="liveness", daemon=True).start()


def _watch(beat: Callable[[], float], limit_seconds: float) -> None:
    while True:
        silent_seconds = time.monotonic() - beat()
        if silent_seconds >= limit_seconds:
            logs.get().critical("stuck", seconds=round(silent_seconds, 1))
            # Without a stderr there is nowhere to write to.
            with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
                faulthandler.dump_traceback(sys.stderr)
            os._exit(EXIT_FAILED)
        left_seconds = limit_seconds - silent_seconds
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
            faulthandler.dump_traceback_later(left_seconds + BACKSTOP_SECONDS, exit=True, file=sys.stderr)
        time.sleep(min(WATCH_SECONDS, left_seconds))
