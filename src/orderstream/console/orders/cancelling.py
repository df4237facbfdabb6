"""Cancels an order through the public endpoint of the gateway, as a client does, and records the action.

The gateway decides. The console writes nothing to the tables of orders here.
"""

import http.client
import secrets
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from orderstream.console.actions.log import Action, recorded
from orderstream.http_server import problems
from orderstream.http_server.problems import Problem
from orderstream.postgres.connect import Connection

ANSWER_SECONDS = 5.0
"""Time limit for each step of the connection to the gateway."""
ANSWER_MAX_BYTES = 1 << 20


class Cancelled(Struct, frozen=True, rename="camel"):
    """The result of a cancel. `trace_id` is that of the request to the gateway."""

    order_id: str
    status: str
    action_id: int
    trace_id: str
    text: str


def cancel_order(connection: Connection, base_url: str, order_id: str, *, actor: str, reason: str) -> Cancelled:
    """Cancel an order. The compensation follows in the background. Cancelling again changes nothing.

    Raises Problem 404, 409 (the order has FAILED), 502 (another answer), 503 (no answer), and psycopg.Error.
    """
    trace_id = secrets.token_hex(16)
    with recorded(connection, Action("order.cancel", order_id, actor, reason, {"traceId": trace_id})) as outcome:
        status, body = _post(base_url, f"/orders/{order_id}/cancel", f"00-{trace_id}-{secrets.token_hex(8)}-01")
        match status:
            case 202:
                order = _decoded(body)
            case 404:
                raise problems.not_found("order")
            case 409:
                raise problems.order_failed()
            case 503:
                raise problems.unavailable("The gateway answered 503. Nothing was changed. Try again.")
            case _:
                raise _unexpected(f"The gateway answered {status}.")
        text = "The order is cancelled. Its payment is voided and its stock is released in the background."
        outcome.result = {"status": order["status"], "version": order.get("version"), "text": text}
        return Cancelled(order_id, str(order["status"]), outcome.action_id, trace_id, text)


def _post(base_url: str, path: str, traceparent: str) -> tuple[int, bytes]:
    """Send an empty POST to the gateway, without a proxy. Return status and body. Raises Problem 503."""
    url = urlsplit(base_url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    client = kind(url.hostname or "", url.port, timeout=ANSWER_SECONDS)
    try:
        client.request("POST", url.path.rstrip("/") + path, headers={"traceparent": traceparent})
        response = client.getresponse()
        return response.status, response.read(ANSWER_MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        detail = f"The gateway at BASE_URL did not answer ({type(error).__name__}). The order may be cancelled or not."
        raise problems.unavailable(f"{detail} You can safely cancel it again.") from error
    finally:
        client.close()


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        order = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise _unexpected("The gateway sent a body that is no order.") from error
    if "status" not in order:
        raise _unexpected("The gateway sent an order without a status.")
    return order


def _unexpected(detail: str) -> Problem:
    return Problem(502, "unexpected-answer", "The gateway answered in an unexpected way", detail)
