"""The health and metrics pages of this one gateway process. Replicas share the API's port, so these have another port.

A thread serves the pages. The thread can therefore report that the event loop is stuck.
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
"""The event loop counts as stuck when its last heartbeat is this old. No request holds the loop for long."""
READY_SECONDS = 2.0


class _Heartbeat:
    """Records the time at which the event loop last ran."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.at = time.monotonic()
        self._beat()

    def _beat(self) -> None:
        self.at = time.monotonic()
        self._loop.call_later(BEAT_SECONDS, self._beat)


def serve_process_pages(settings: Settings, health: Health, loop: asyncio.AbstractEventLoop) -> ThreadingHTTPServer:
    """Serve the pages on METRICS_PORT, and end the process when `loop` is stuck.

    Raises OSError if the port is in use.
    """
    heartbeat = _Heartbeat(loop)

    def live() -> str | None:
        return None if time.monotonic() - heartbeat.at < BEAT_LIMIT_SECONDS else "the event loop is stuck"

    def ready() -> str | None:
        problem = asyncio.run_coroutine_threadsafe(health.problem(), loop)
        try:
            return problem.result(READY_SECONDS)
        except TimeoutError:
            problem.cancel()
            return f"no answer within {READY_SECONDS:.0f} s"

    pages = serve_pages(settings.host, settings.metrics_port, live, ready)
    exit_when_stuck(lambda: heartbeat.at, BEAT_LIMIT_SECONDS)
    return pages
