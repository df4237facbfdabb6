"""Ends a process whose loop is stuck, so that its supervisor restarts it.

Compose restarts a container that exits, but not a container that is unhealthy. Therefore the process watches itself.
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
"""A timer in C ends the process this much later, if a call that holds Python's lock also blocks the watching thread."""


def exit_when_stuck(beat: Callable[[], float], limit_seconds: float) -> None:
    """End the process with code 1 when `beat` (a monotonic time) is older than the limit. A separate thread checks it.

    Before that, log `stuck` and write the stack of every thread to stderr. No order is lost: its work is repeated.
    """
    threading.Thread(target=_watch, args=(beat, limit_seconds), name="liveness", daemon=True).start()


def _watch(beat: Callable[[], float], limit_seconds: float) -> None:
    while True:
        silent_seconds = time.monotonic() - beat()
        if silent_seconds >= limit_seconds:
            logs.get().critical("stuck", seconds=round(silent_seconds, 1))
            # A process without a stderr writes nothing.
            with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
                faulthandler.dump_traceback(sys.stderr)
            os._exit(EXIT_FAILED)
        left_seconds = limit_seconds - silent_seconds
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
            faulthandler.dump_traceback_later(left_seconds + BACKSTOP_SECONDS, exit=True, file=sys.stderr)
        time.sleep(min(WATCH_SECONDS, left_seconds))
