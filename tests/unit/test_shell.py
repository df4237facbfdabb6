"""Pasted lines send the same request with curl and with its replacement."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orderstream.local.banner import curl_lines
from tests.support.shell import paste, provide_curl

Request = tuple[str, str, str | None, bytes]


class Server(HTTPServer):
    """Records the requests and answers each with a fixed order."""

    requests: list[Request]


class Handler(BaseHTTPRequestHandler):
    """Answers GET and POST."""

    server: Server

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["content-length"])))

    def do_GET(self) -> None:
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("content-type"), body))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"orderId": "an-id"}')

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def without_curl(folder: Path) -> dict[str, str]:
    """Return an environment whose PATH has a shell and `cut`, and no curl."""
    for name in ("sh", "cut"):
        program = shutil.which(name)
        assert program is not None
        (folder / name).symlink_to(program)
    return {**os.environ, "PATH": str(folder)}


def expected() -> list[Request]:
    body = curl_lines("").split("-d '")[1].split("')")[0].encode()
    return [("POST", "/orders", "application/json", body), ("GET", "/orders/an-id", None, b"")]


def test_the_banners_lines_work_without_curl(server: Server, tmp_path: Path) -> None:
    printed = paste(curl_lines(f"http://127.0.0.1:{server.server_port}"), without_curl(tmp_path))
    assert printed == '{"orderId": "an-id"}\n{"orderId": "an-id"}\n'
    assert server.requests == expected()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_banners_lines_send_the_same_requests_with_curl(server: Server) -> None:
    paste(curl_lines(f"http://127.0.0.1:{server.server_port}"))
    assert server.requests == expected()


def test_an_option_that_the_replacement_does_not_know_is_an_error(tmp_path: Path) -> None:
    command = [str(provide_curl(tmp_path) / "curl"), "--retry", "3", "http://127.0.0.1:1/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unrecognized arguments: --retry" in done.stderr
