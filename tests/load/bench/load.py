"""Starts the load generator in a process of its own, with requests to a server."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import msgspec

from tests.load.bench.generator import NUMBER
from tests.load.bench.generator_job import ClosedJob, OpenJob, Report

_BODIES = 60
_GRACE_SECONDS = 30
"""Time that the generator's process has to start and to end, beside its job."""


class Load(AbstractContextManager["Load"]):
    """A generator that runs in the background. `ends` waits for its report. After the `with` block it does not run."""

    def __init__(self, job: OpenJob | ClosedJob) -> None:
        seconds = job.count / job.rate if isinstance(job, OpenJob) else job.seconds
        self._limit_seconds = seconds + job.answer_limit_seconds + _GRACE_SECONDS
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.load.bench.generator"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        text = msgspec.msgpack.encode(job)
        assert self._process.stdin is not None
        self._process.stdin.write(NUMBER.pack(len(text)) + text)
        self._process.stdin.flush()

    @property
    def runs(self) -> bool:
        """Whether the generator has not ended."""
        return self._process.poll() is None

    def tell_settled(self, number: int) -> None:
        """Tell a closed loop with `in_flight_max` how many of its requests are settled."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended
            self._process.stdin.write(NUMBER.pack(number))
            self._process.stdin.flush()

    def ends(self) -> Report:
        """Wait until every request is answered or given up, and return the report."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdin = None
        output, _ = self._process.communicate(timeout=self._limit_seconds)
        return msgspec.msgpack.decode(output, type=Report)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()


def paced(base_url: str, requests: Sequence[bytes], rate: float, seconds: float, expected: int = 201) -> Load:
    """Send requests at a fixed rate, for some time."""
    host, port = _target(base_url)
    count = max(1, round(rate * seconds))
    return Load(OpenJob(host=host, port=port, requests=requests, rate=rate, count=count, expected=expected))


def saturating(
    base_url: str,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    expected: int = 201,
    in_flight_max: int | None = None,
) -> Load:
    """Send requests over a number of connections, as fast as they are answered, for some time."""
    host, port = _target(base_url)
    return Load(
        ClosedJob(
            host=host,
            port=port,
            requests=requests,
            seconds=seconds,
            connections=connections,
            expected=expected,
            in_flight_max=in_flight_max,
        )
    )


def orders(base_url: str, user: str, skus: Sequence[str], lines: int = 1) -> list[bytes]:
    """Return requests that place orders of `user`. They differ in quantity and price.

    Each order has `lines` lines. The lines of all orders together go through `skus` in turn, at least once.
    """
    number_of_orders = max(_BODIES, -(-len(skus) // lines))
    requests = []
    for number in range(number_of_orders):
        chosen = [skus[(number * lines + line) % len(skus)] for line in range(lines)]
        qty, cents = 1 + number % 3, 999 + number % _BODIES * 100
        items = [{"sku": sku, "qty": qty, "price": cents / 100} for sku in chosen]
        order = {"userId": user, "items": items, "amount": qty * cents * lines / 100, "currency": "USD"}
        requests.append(_request("POST", base_url, "/orders", msgspec.json.encode(order)))
    return requests


def cancels(base_url: str, order_ids: Sequence[str]) -> list[bytes]:
    """Return requests that cancel orders."""
    return [_request("POST", base_url, f"/orders/{order_id}/cancel", b"") for order_id in order_ids]


def reads(base_url: str, order_ids: Sequence[str]) -> list[bytes]:
    """Return requests that read orders."""
    return [_request("GET", base_url, f"/orders/{order_id}") for order_id in order_ids]


def _target(base_url: str) -> tuple[str, int]:
    url = urlsplit(base_url)
    assert url.hostname is not None
    assert url.port is not None
    return url.hostname, url.port


def _request(method: str, base_url: str, path: str, body: bytes | None = None) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: {urlsplit(base_url).netloc}\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body
