"""Starts the open-loop client in a process of its own, with requests to the gateway."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import msgspec

from tests.load.bench.open_loop import Job, Report

_BODIES = 60
_GRACE_SECONDS = 30
"""Time that the client's process has to start and to end, beside its job."""


class OpenLoad(AbstractContextManager["OpenLoad"]):
    """A client that runs in the background. `ends` waits for its report. After the `with` block it does not run."""

    def __init__(self, job: Job) -> None:
        self._limit_seconds = job.count / job.rate + job.answer_limit_seconds + _GRACE_SECONDS
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.load.bench.open_loop"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.msgpack.encode(job))
        self._process.stdin.close()
        self._process.stdin = None

    def ends(self) -> Report:
        """Wait until every request is answered or given up, and return the report."""
        output, _ = self._process.communicate(timeout=self._limit_seconds)
        return msgspec.msgpack.decode(output, type=Report)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def orders(base_url: str, user: str, sku: str, rate: float, seconds: float) -> OpenLoad:
    """Place orders of `user` at a fixed rate. The orders differ in quantity and price."""
    bodies = [_order(user, sku, qty=1 + number % 3, cents=999 + number * 100) for number in range(_BODIES)]
    requests = [_request(base_url, "/orders", body) for body in bodies]
    return _start(base_url, requests, rate, round(rate * seconds), expected=201)


def cancels(base_url: str, order_ids: Sequence[str], rate: float) -> OpenLoad:
    """Cancel these orders at a fixed rate."""
    requests = [_request(base_url, f"/orders/{order_id}/cancel", b"") for order_id in order_ids]
    return _start(base_url, requests, rate, len(requests), expected=202)


def _start(base_url: str, requests: Sequence[bytes], rate: float, count: int, expected: int) -> OpenLoad:
    url = urlsplit(base_url)
    assert url.hostname is not None
    assert url.port is not None
    job = Job(host=url.hostname, port=url.port, requests=requests, rate=rate, count=count, expected=expected)
    return OpenLoad(job)


def _order(user: str, sku: str, qty: int, cents: int) -> bytes:
    item = {"sku": sku, "qty": qty, "price": cents / 100}
    return msgspec.json.encode({"userId": user, "items": [item], "amount": qty * cents / 100, "currency": "USD"})


def _request(base_url: str, path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {urlsplit(base_url).netloc}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
