"""Ends a process that does not finish its drain in time."""

import os
import threading

from orderstream.telemetry import logs

EXIT_FAILED = 1


def limit_drain(seconds: float) -> None:
    """End this process with code 1 if it has not ended after `seconds`. No order is lost."""

    def give_up() -> None:
        logs.get().error("drain_timeout", seconds=seconds)
        os._exit(EXIT_FAILED)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
