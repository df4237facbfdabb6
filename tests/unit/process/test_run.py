"""A service as a process: its signals, its health pages and its exit code."""

import http.client
import time

import pytest

from orderstream.process.readiness import Readiness
from orderstream.process.run import _serve_pages
from orderstream.settings import Settings


class Idle:
    """A loop that does nothing."""

    ready = True

    def __init__(self) -> None:
        self.beat = time.monotonic()
        self.readiness = Readiness()

    def run(self) -> None:
        """Return at once."""


@pytest.mark.parametrize(
    ("host", "reached"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "::1"), ("0.0.0.0", "127.0.0.1")]
)
def test_pages_are_served_on_ipv4_and_ipv6_addresses(host: str, reached: str) -> None:
    pages = _serve_pages(Settings.model_validate({"host": host, "metrics_port": 0}), Idle())
    try:
        client = http.client.HTTPConnection(reached, pages.server_port, timeout=10)
        client.request("GET", "/readyz")
        assert client.getresponse().status == 200
        client.close()
    finally:
        pages.shutdown()
        pages.server_close()
