"""Each fault of the simulator, over HTTP: what the client sees, and what the ledger holds afterwards."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.support.simulators import Simulator
from tests.support.waiting import wait_until

BODY = {"amount": "12.50", "currency": "EUR"}


def authorize(http: httpx.Client, key: str, timeout: float = 10) -> httpx.Response:
    """Send a request to authorize."""
    return http.post("/v1/payments", json=BODY, headers={"Idempotency-Key": key}, timeout=timeout)


def charges(http: httpx.Client, key: str) -> int:
    """Return the number of charges of a key."""
    response = http.get(f"/v1/payments/{key}")
    return 0 if response.status_code == 404 else int(response.json()["charges"])


def test_a_patch_is_shown_and_a_wrong_one_changes_nothing(http: httpx.Client) -> None:
    before = http.get("/simulator/faults").json()
    changed = http.patch("/simulator/faults", json={"latencyMs": 1, "webhookUrl": "http://127.0.0.1:9/x"}).json()
    assert changed == http.get("/simulator/faults").json() == {**before, **changed}
    wrong = http.patch("/simulator/faults", json={"latencyMs": 5, "hangRate": 2, "slow": 1})
    assert (wrong.status_code, wrong.headers["content-type"]) == (400, "application/problem+json")
    assert all(name in wrong.json()["detail"] for name in ("hangRate", "slow"))
    assert http.get("/simulator/faults").json() == changed


def test_a_refused_call_has_retry_after_and_changes_nothing(http: httpx.Client, running: Simulator, key: str) -> None:
    running.change_faults(refuseRate=1, retryAfterSeconds=7)
    for response in (authorize(http, key), http.post(f"/v1/payments/{key}/void")):
        assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert http.get(f"/v1/payments/{key}").status_code == 404


@pytest.mark.parametrize(("fault", "charged"), [("errorBeforeRate", 0), ("errorAfterRate", 1)])
def test_an_error_is_answered_before_or_after_the_charge(
    http: httpx.Client, running: Simulator, key: str, fault: str, charged: int
) -> None:
    running.change_faults(**{fault: 1})
    assert [authorize(http, key).status_code for _ in range(2)] == [500, 500]
    assert charges(http, key) == charged
    running.change_faults(**{fault: 0})
    assert authorize(http, key).json()["status"] == "authorized"
    assert charges(http, key) == 1


def test_a_connection_is_dropped_after_the_charge_and_after_the_void(
    http: httpx.Client, running: Simulator, key: str
) -> None:
    running.change_faults(dropAfterRate=1)
    with pytest.raises(httpx.TransportError):
        authorize(http, key)
    assert charges(http, key) == 1
    with pytest.raises(httpx.TransportError):
        http.post(f"/v1/payments/{key}/void")
    assert http.get(f"/v1/payments/{key}").json()["held"] == "0.00"


def test_a_stuck_key_is_never_answered_and_others_are(http: httpx.Client, running: Simulator, key: str) -> None:
    running.change_faults(stuckKeys=[key])
    with pytest.raises(httpx.ReadTimeout):
        authorize(http, key, timeout=0.3)
    assert authorize(http, f"{key}-2").json()["status"] == "authorized"
    assert charges(http, key) == 0


def test_a_share_of_calls_is_never_answered(http: httpx.Client, running: Simulator, key: str) -> None:
    running.change_faults(hangRate=1)
    with pytest.raises(httpx.ReadTimeout):
        authorize(http, key, timeout=0.3)
    assert charges(http, key) == 0


def test_a_slow_call_takes_its_time_and_acts_also_if_its_client_leaves(
    http: httpx.Client, running: Simulator, key: str
) -> None:
    running.change_faults(latencyMs=1_500)
    began = time.monotonic()
    assert authorize(http, key).json()["status"] == "authorized"
    assert time.monotonic() - began >= 1.5
    with pytest.raises(httpx.ReadTimeout):
        authorize(http, f"{key}-2", timeout=0.5)
    wait_until(lambda: charges(http, f"{key}-2") == 1, 10, "the call whose client left charges")


def test_a_late_charge_does_not_follow_a_void(http: httpx.Client, running: Simulator, key: str) -> None:
    running.change_faults(latencyMs=3_000)
    with pytest.raises(httpx.ReadTimeout):
        authorize(http, key, timeout=0.5)
    running.change_faults(latencyMs=0)
    assert http.post(f"/v1/payments/{key}/void").json()["status"] == "nothing_to_void"
    running.change_faults(latencyMs=3_200)
    assert authorize(http, key).json()["status"] == "voided"
    assert charges(http, key) == 0


def test_a_declined_key_is_declined_in_every_call(http: httpx.Client, running: Simulator, key: str) -> None:
    running.change_faults(declineRate=1)
    assert authorize(http, key).json() == {"key": key, "status": "declined", **BODY}
    running.change_faults(declineRate=0)
    assert authorize(http, key).json()["status"] == "declined"


def test_while_the_provider_is_down_every_page_of_it_is_answered_503(
    http: httpx.Client, running: Simulator, key: str
) -> None:
    running.change_faults(down=True)
    responses = [
        authorize(http, key),
        http.post(f"/v1/payments/{key}/void"),
        http.get("/v1/payments"),
        http.get(f"/v1/payments/{key}"),
    ]
    assert {response.status_code for response in responses} == {503}
    running.change_faults(down=False)
    assert http.get(f"/v1/payments/{key}").status_code == 404
    assert authorize(http, key).json()["status"] == "authorized"


def test_a_forgotten_key_is_charged_again(http: httpx.Client, running: Simulator, key: str) -> None:
    running.change_faults(keyLifetimeSeconds=0.001)
    authorize(http, key)
    wait_until(lambda: authorize(http, key).is_success and charges(http, key) >= 2, 10, "the key is charged again")
    payment = http.get(f"/v1/payments/{key}").json()
    assert float(payment["held"]) == 12.5 * payment["charges"]


@contextmanager
def webhook(status: int = 204) -> Iterator[tuple[str, list[object]]]:
    """Serve a webhook. Yields its address and the bodies that it has received."""
    received: list[object] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("decline_rate", "status"), [(0, "authorized"), (1, "declined")])
def test_a_pending_payment_is_decided_later_and_calls_the_webhook(
    http: httpx.Client, running: Simulator, key: str, decline_rate: float, status: str
) -> None:
    with webhook() as (url, received):
        running.change_faults(pendingRate=1, pendingSeconds=0.2, declineRate=decline_rate, webhookUrl=url)
        assert authorize(http, key).json()["status"] == "pending"
        wait_until(lambda: received == [{"key": key}], 10, "the webhook has the key")
    assert authorize(http, key).json()["status"] == status
    assert charges(http, key) == (status == "authorized")


def test_a_webhook_that_fails_is_retried_a_limited_number_of_times(
    http: httpx.Client, running: Simulator, key: str
) -> None:
    with webhook(500) as (url, received):
        running.change_faults(pendingRate=1, pendingSeconds=0, webhookUrl=url)
        authorize(http, key)
        wait_until(lambda: received == [{"key": key}] * 3, 10, "the webhook was tried three times")
        authorize(http, f"{key}-2")
        wait_until(lambda: received[3:] == [{"key": f"{key}-2"}] * 3, 10, "only the next key follows")


def test_without_a_listener_the_webhook_is_lost_and_the_payment_is_decided(
    http: httpx.Client, running: Simulator, key: str
) -> None:
    running.change_faults(pendingRate=1, pendingSeconds=0, webhookUrl="http://127.0.0.1:9/hook")
    authorize(http, key)
    wait_until(lambda: charges(http, key) == 1, 10, "the payment is decided")
