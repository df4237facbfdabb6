"""A relay that runs in a thread of the test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from orderstream.outbox_relay.relay import Relay
from orderstream.settings import Settings
from orderstream.telemetry.setup import start
from tests.support.waiting import wait_until, watched


class _Loop:
    def __init__(self, settings: Settings) -> None:
        self._signal = threading.Event()
        self.relay = Relay(settings, start("outbox-relay", settings), self._signal)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.relay.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def ending(self) -> BaseException | str | None:
        if self._thread.is_alive():
            return None
        return self.error or "it returned"

    def stop(self) -> None:
        self._signal.set()
        self._thread.join(40)
        assert not self._thread.is_alive(), "the relay does not stop"


@contextmanager
def running(settings: Settings) -> Iterator[None]:
    """Run a relay during the block. Raises the error that ended the relay early."""
    loop = _Loop(settings)
    try:
        with watched("the relay", loop.ending):
            wait_until(lambda: loop.relay.ready, 60, "the relay is ready")
            yield
    finally:
        loop.stop()
    if loop.error is not None:
        raise loop.error
