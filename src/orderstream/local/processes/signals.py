"""Turns SIGINT, SIGTERM and SIGHUP into two events: the first signal requests a stop, the second forces it."""

import queue
import signal
import threading

from orderstream.local.processes.progress import Terminal

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """`requested` is set after the first signal, `forced` after the second. Create it first, in the main thread.

    The signal handler only puts into a SimpleQueue, which is safe at any point of the program. The lock of an Event is
    not.
    """

    def __init__(self, terminal: Terminal) -> None:
        self.requested = threading.Event()
        self.forced = threading.Event()
        self._terminal = terminal
        self._arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=self._set_events, name="signals", daemon=True).start()
        for number in _SIGNALS:
            signal.signal(number, lambda received, _frame: self._arrived.put(received))

    def _set_events(self) -> None:
        self._arrived.get()
        self._terminal.clear()
        self._terminal.say("Stopping; press Ctrl-C again to force it")
        self.requested.set()
        self._arrived.get()
        self._terminal.say("Forced: killing all processes now")
        self.forced.set()
