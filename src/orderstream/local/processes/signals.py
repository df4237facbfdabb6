"""Turns the signals that ask us to stop into two events: the first asks, a second one forces."""

import queue
import signal
import threading

from orderstream.local.processes.terminal import Terminal

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """`requested` after the first signal, `forced` after the second. Make it in the main thread, before all else.

    A handler only puts into a SimpleQueue, which is safe wherever the signal struck; an Event's own lock is not.
    """

    def __init__(self, terminal: Terminal) -> None:
        self.requested = threading.Event()
        self.forced = threading.Event()
        self._terminal = terminal
        self._arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=self._pass_on, name="signals", daemon=True).start()
        for one in _SIGNALS:
            signal.signal(one, lambda number, _frame: self._arrived.put(number))

    def _pass_on(self) -> None:
        self._arrived.get()
        self._terminal.clear()
        self._terminal.say("Stopping; once more (Ctrl-C) to force it")
        self.requested.set()
        self._arrived.get()
        self._terminal.say("Forced: ending everything now")
        self.forced.set()
