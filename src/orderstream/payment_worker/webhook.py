"""The webhook: a payment provider may send a request to it when a pending payment is decided.

The request decides nothing. It only brings the next call forward, and that call gets the answer from the provider. So a
forged or a lost request does no harm, and the webhook needs no API key.
"""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from orderstream.telemetry import logs

PATH = "/webhooks/payments"
BODY_MAX_BYTES = 4_096
LENGTH_MAX_DIGITS = 10
"""Digits of a Content-Length, zeros at its beginning included."""
KEYS_MAX = 10_000
"""Keys that wait for the timer. The webhook refuses further keys with 503."""
KEYS_PER_RUN = 500
CONNECTIONS_MAX = 64
"""Connections at the same time. The webhook closes further connections."""
TIMEOUT_SECONDS = 5

log = logs.get()


class _Body(Struct):
    """The body of a request. Other members are ignored. PostgreSQL would refuse a key with a NUL."""

    key: Annotated[str, Meta(pattern=r"\A[!-~]{1,64}\Z")]


_decode = msgspec.json.Decoder(_Body).decode


class DecidedKeys:
    """The keys that the webhook has received and the timer has not taken yet. All methods are thread-safe."""

    def __init__(self, wake: threading.Event) -> None:
        self._wake = wake
        self._keys: dict[str, None] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._keys)

    def add(self, key: str) -> bool:
        """Add a key and wake the timer. Return False if KEYS_MAX keys wait already."""
        with self._lock:
            if len(self._keys) >= KEYS_MAX and key not in self._keys:
                return False
            self._keys[key] = None
        self._wake.set()
        return True

    def take(self) -> list[str]:
        """Remove and return the oldest keys, at most KEYS_PER_RUN."""
        with self._lock:
            keys = list(self._keys)[:KEYS_PER_RUN]
            for key in keys:
                del self._keys[key]
        return keys


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_port = True
    """Replicas share the port."""

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, or close it if there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection in this thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


def serve_webhook(host: str, port: int, keys: DecidedKeys) -> ThreadingHTTPServer:
    """Serve POST /webhooks/payments with the body {"key": "<order id>"}. Raises OSError if the port cannot be used."""

    class Webhook(BaseHTTPRequestHandler):
        timeout = TIMEOUT_SECONDS

        def do_POST(self) -> None:
            if self.path != PATH:
                self._answer(404, "not found")
                return
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdecimal()):
                self._answer(411, "Content-Length is required")
                return
            if len(length) > LENGTH_MAX_DIGITS or int(length) > BODY_MAX_BYTES:
                self._answer(413, f"the body is larger than {BODY_MAX_BYTES} bytes")
                return
            try:
                key = _decode(self.rfile.read(int(length))).key
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._answer(400, 'expected {"key": "<order id>"}')
                return
            if keys.add(key):
                self._answer(202, "accepted")
            else:
                self._answer(503, "too many keys wait; call again later")

        def _answer(self, status: int, text: str) -> None:
            body = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            del format, args

    server = _Server(host, port, Webhook)
    threading.Thread(target=server.serve_forever, name="webhook", daemon=True).start()
    log.info("webhook_started", port=server.server_port)
    return server
