"""Serves the pages /livez, /readyz and /metrics of one process on METRICS_PORT, in a thread of its own.

Each process has a port of its own. Replicas of the gateway share the port of the API. On a shared port, a counter would
jump back when another replica answers.
"""

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from orderstream.telemetry import metrics

Problem = Callable[[], str | None]
"""Returns a line that describes the problem, or None."""


def serve_pages(host: str, port: int, live: Problem, ready: Problem) -> ThreadingHTTPServer:
    """Serve the pages. If there is a problem, they answer 503 with it. Raises OSError if the port is in use."""

    class Pages(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            match self.path:
                case "/livez":
                    self._state(live())
                case "/readyz":
                    self._state(live() or ready())
                case "/metrics":
                    self._answer(200, metrics.exposition(), metrics.CONTENT_TYPE)
                case _:
                    self._answer(404, b"not found\n")

        def _state(self, problem: str | None) -> None:
            self._answer(200 if problem is None else 503, f"{problem or 'ok'}\n".encode())

        def _answer(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            del format, args

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    server = Server((host, port), Pages)
    threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
    return server
