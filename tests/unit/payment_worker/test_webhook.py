"""The webhook: it takes keys, refuses everything else with a clear answer, and is bounded."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from orderstream.payment_worker import webhook
from orderstream.payment_worker.webhook import BODY_MAX_BYTES, PATH, DecidedKeys, serve_webhook
from tests.support.waiting import wait_until


class Running:
    """A webhook on a free port."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self.keys = DecidedKeys(self.wake)
        self.server = serve_webhook("127.0.0.1", 0, self.keys)

    def request(self, body: bytes | None, path: str = PATH, method: str = "POST", **headers: str) -> tuple[int, str]:
        """Send a request and return the status and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


@pytest.fixture
def running() -> Iterator[Running]:
    """A webhook that ends with the test."""
    running = Running()
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_a_key_is_taken_once_and_wakes_the_timer(running: Running) -> None:
    assert running.request(b'{"key": "order-1", "status": "authorized"}')[0] == 202
    assert running.request(b'{"key": "order-1"}')[0] == 202
    assert running.request(b'{"key": "order-2"}')[0] == 202
    assert running.wake.is_set()
    assert running.keys
    assert running.keys.take() == ["order-1", "order-2"]
    assert not running.keys


NO_KEYS = (b"", b"{", b"[]", b'{"key": 1}', b"{}", b'{"key": null}', b'{"key": "\xff"}')
NO_ORDER_IDS = (b'{"key": ""}', b'{"key": "a\\u0000"}', b'{"key": "a\\n"}', b'{"key": "a b"}')
LONG_KEY = b'{"key": "' + b"a" * 65 + b'"}'


@pytest.mark.parametrize("body", [*NO_KEYS, *NO_ORDER_IDS, LONG_KEY])
def test_a_body_without_a_key_is_refused(running: Running, body: bytes) -> None:
    status, text = running.request(body)
    assert (status, text) == (400, 'expected {"key": "<order id>"}\n')
    assert not running.keys


def test_other_requests_are_refused(running: Running) -> None:
    assert running.request(b'{"key": "order-1"}', path="/")[0] == 404
    assert running.request(None, method="GET")[0] == 501
    assert running.request(b"{" + b" " * BODY_MAX_BYTES)[0] == 413
    for length in ("-1", "many", "+1", "1" * 5_000, "0" * 10 + "1000000"):
        connection = http.client.HTTPConnection("127.0.0.1", running.server.server_port, timeout=10)
        connection.putrequest("POST", PATH)
        connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status in (411, 413)
        connection.close()
    assert not running.keys


def test_a_full_webhook_refuses_further_keys(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "KEYS_MAX", 2)
    monkeypatch.setattr(webhook, "KEYS_PER_RUN", 1)
    statuses = [running.request(b'{"key": "%d"}' % number)[0] for number in (1, 2, 3, 1)]
    assert statuses == [202, 202, 503, 202]
    assert [running.keys.take(), running.keys.take(), running.keys.take()] == [["1"], ["2"], []]


def test_connections_are_limited_and_a_silent_client_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "CONNECTIONS_MAX", 2)
    monkeypatch.setattr(webhook, "TIMEOUT_SECONDS", 0.5)
    running = Running()
    address = ("127.0.0.1", running.server.server_port)
    try:
        with ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection(address, 10)) for _ in range(2)]
            refused = stack.enter_context(socket.create_connection(address, 10))
            assert refused.recv(1) == b"", "the third connection is closed"
            assert [client.recv(1) for client in silent] == [b"", b""], "both time out"
        wait_until(lambda: running.request(b'{"key": "order-1"}')[0] == 202, 10, "there is room again")
    finally:
        running.server.shutdown()
        running.server.server_close()
