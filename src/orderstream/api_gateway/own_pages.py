"""The pages of this one gateway, on a port of its own: replicas share the port of the API.

The thread that serves them tells whether the event loop turns, which the loop itself cannot.
"""

import asyncio
import time
from http.server import ThreadingHTTPServer

from orderstream.api_gateway.routes import Health
from orderstream.process.liveness import exit_when_stuck
from orderstream.process.pages import serve_pages
from orderstream.settings import Settings

BEAT_SECONDS = 1.0
BEAT_LIMIT_SECONDS = 30.0
"""An event loop that has not turned for so long is stuck: no request holds it for more than a moment."""
READY_SECONDS = 2.0


class _Beat:
    """The time at which the event loop last turned."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.at = time.monotonic()
        self._strike()

    def _strike(self) -> None:
        self.at = time.monotonic()
        self._loop.call_later(BEAT_SECONDS, self._strike)


def own_pages(settings: Settings, health: Health, loop: asyncio.AbstractEventLoop) -> ThreadingHTTPServer:
    """Serve the pages on METRICS_PORT, and end the process when `loop` is stuck. Raises OSError for a taken port."""
    beat = _Beat(loop)

    def live() -> str | None:
        return None if time.monotonic() - beat.at < BEAT_LIMIT_SECONDS else "the event loop is stuck"

    def ready() -> str | None:
        asked = asyncio.run_coroutine_threadsafe(health.problem(), loop)
        try:
            return asked.result(READY_SECONDS)
        except TimeoutError:
            asked.cancel()
            return f"no answer within {READY_SECONDS:.0f} s"

    pages = serve_pages(settings.host, settings.metrics_port, live, ready)
    exit_when_stuck(lambda: beat.at, BEAT_LIMIT_SECONDS)
    return pages
