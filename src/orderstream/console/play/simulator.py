"""Reads and changes the faults of the payment simulator, with presets that show one fault each."""

import http.client
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from orderstream.console.play.orders import DECLINED_AMOUNT

ANSWER_SECONDS = 2.0
ANSWER_MAX_BYTES = 1 << 20
_PATH = "/simulator/faults"

Members = dict[str, Any]

WELL: Members = {
    "latencyMs": 120,
    "latencyDistribution": "lognormal",
    "latencyP99Ms": 600,
    "declineRate": 0,
    "refuseRate": 0,
    "errorBeforeRate": 0,
    "errorAfterRate": 0,
    "dropAfterRate": 0,
    "hangRate": 0,
    "pendingRate": 0,
    "down": False,
    "declinedAmounts": [DECLINED_AMOUNT],
}
"""What `make demo` starts with. Each preset is this and its own members, so that presets do not add up."""


class Preset(Struct, frozen=True):
    """One fault with one click. `watch` says what to look at."""

    name: str
    title: str
    watch: str
    members: Members


PRESETS = (
    Preset(
        "well",
        "All well",
        "Orders settle within a second. After a fault, watch how the open orders of the overview go down to 0.",
        WELL,
    ),
    Preset(
        "slowBank",
        "Slow bank",
        "Half of the calls take more than 3 s. On the overview, calls in flight grow. New orders are still accepted.",
        WELL | {"latencyMs": 3_000, "latencyP99Ms": 9_000},
    ),
    Preset(
        "bankDown",
        "Bank is down",
        "Every call is answered with 503. The breaker opens after some seconds: payments wait, and no order fails.",
        WELL | {"down": True},
    ),
    Preset(
        "drops",
        "Charges, then drops the connection",
        "The answer to 4 of 10 calls is lost after the charge. payment-worker calls again with the same key. Run the"
        " audit: no order is charged twice.",
        WELL | {"dropAfterRate": 0.4},
    ),
    Preset(
        "errors",
        "Errors before and after the charge",
        "Look at an order that takes longer: its payment has several attempts, and one charge.",
        WELL | {"errorBeforeRate": 0.3, "errorAfterRate": 0.3},
    ),
    Preset(
        "customer",
        "Customer must confirm",
        "Half of the payments are pending for 20 s. Their orders stay PROCESSING, and say on their page what they wait"
        " for.",
        WELL | {"pendingRate": 0.5, "pendingSeconds": 20},
    ),
    Preset(
        "hangs",
        "Never answers some calls",
        "1 of 10 calls gets no answer. After PAYMENT_TIMEOUT_SECONDS payment-worker calls again.",
        WELL | {"hangRate": 0.1},
    ),
)


class SimulatorError(Exception):
    """The simulator did not answer, or refused the faults. The message is one line."""


class RefusedFaultsError(SimulatorError):
    """The simulator refused the faults, and nothing changed."""


def faults_at(url: str) -> Members:
    """Return the faults of the simulator. Raises SimulatorError."""
    return _ask(url, "GET", None)


def change_faults(url: str, members: Members) -> Members:
    """Change these members, and return all faults. Raises SimulatorError."""
    return _ask(url, "PATCH", msgspec.json.encode(members))


def _ask(url: str, method: str, body: bytes | None) -> Members:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=ANSWER_SECONDS)
    try:
        connection.request(method, _PATH, body)
        answer = connection.getresponse()
        content = answer.read(ANSWER_MAX_BYTES)
        document = msgspec.json.decode(content, type=dict[str, Any])
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise SimulatorError(f"the payment simulator does not answer: {error}"[:300]) from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise RefusedFaultsError(str(document.get("detail", f"status {answer.status}"))[:1_000])
    return document
