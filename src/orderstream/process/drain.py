"""The hard end of a process: whatever hangs, it is over in time."""

import os
import threading

from orderstream.telemetry import logs

EXIT_FAILED = 1


def limit_drain(seconds: float) -> None:
    """End this process with code 1 unless it has ended by itself in so many seconds, which loses nothing."""

    def give_up() -> None:
        logs.get().error("drain_timeout", seconds=seconds)
        os._exit(EXIT_FAILED)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
