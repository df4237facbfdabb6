"""A server of a payment ledger that a test fills as it likes, also with payments that no provider would make."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Payment = dict[str, Any]
Answer = tuple[int, bytes]


def charge(key: str, amount: str | None = "129.00", **other: Any) -> Payment:
    """Return a payment with one charge that is held, as the ledger lists it."""
    payment = {"key": key, "status": "authorized", "amount": amount, "currency": "USD", "charges": 1, "held": amount}
    return {**payment, "createdAt": "2026-01-02T03:04:05.678Z", **other}


class LedgerServer:
    """Its payments by key, the paths that were requested, and a hook that may answer a request in its place."""

    def __init__(self) -> None:
        self.payments: dict[str, Payment] = {}
        self.requested: list[str] = []
        self.headers: dict[str, str] = {}
        self.before: Callable[[str], Answer | None] = lambda _path: None
        self.url = ""

    def put(self, *payments: Payment) -> None:
        """Add or replace payments."""
        self.payments.update((payment["key"], payment) for payment in payments)

    def answer(self, target: str, headers: dict[str, str]) -> Answer:
        """Return the status and the body of a GET."""
        self.requested.append(target)
        self.headers = headers
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if (given := self.before(path)) is not None:
            return given
        if path != "/v1/payments":
            found = self.payments.get(path.removeprefix("/v1/payments/"))
            return (200, json.dumps(found).encode()) if found else (404, b"{}")
        after, limit = query.get("after", [""])[0], int(query["limit"][0])
        keys = sorted(key for key in self.payments if key > after)
        page, more = keys[:limit], len(keys) > limit
        listed = [self.payments[key] for key in page]
        return 200, json.dumps({"payments": listed, "next": page[-1] if more else None}).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_arguments: object) -> None:
        """Print nothing. A test may send what is no HTTP."""


@contextmanager
def ledger_server() -> Iterator[LedgerServer]:
    """Serve an empty ledger on loopback until the block ends."""
    ledger = LedgerServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, body = ledger.answer(self.path, dict(self.headers))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.send_header("location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Log nothing."""

    server = _Server(("127.0.0.1", 0), Handler)
    ledger.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield ledger
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
