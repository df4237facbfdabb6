"""The OpenAPI document, generated from the types of the API."""

from typing import Any

import msgspec

from orderstream.api_gateway.orders.idempotency import KEY_MAX_CHARACTERS
from orderstream.api_gateway.orders.waiters import WAIT_MAX_SECONDS
from orderstream.api_gateway.schemas import OrderAccepted, OrderRequest, OrderView
from orderstream.http_server.problems import ProblemBody

_DESCRIPTION = (
    "Accepts orders and returns their state. This is an API for servers. It sends no CORS headers and answers OPTIONS"
    " with 405, so that a page of another origin cannot read a response in a browser."
)
_EXAMPLE = {
    "userId": "u-1",
    "items": [{"sku": "SKU-1", "qty": 1, "price": 129.0}],
    "amount": 129.0,
    "currency": "USD",
}
_TRACE = {"traceresponse": {"description": "W3C trace context of this request.", "schema": {"type": "string"}}}
_STRING = {"schema": {"type": "string"}}
_ORDER_ID = {"name": "orderId", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
_CONDITIONS = [
    {"name": name, "in": "header", "description": "Entity tags, or `*` (RFC 9110, 13.1).", "schema": {"type": "string"}}
    for name in ("if-match", "if-none-match")
]


def document() -> dict[str, Any]:
    """Return the document as JSON-ready data."""
    (order, accepted, view, problem), components = msgspec.json.schema_components(
        [OrderRequest, OrderAccepted, OrderView, ProblemBody], ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "OrderStream", "version": "1", "description": _DESCRIPTION},
        "paths": {
            "/orders": {"post": _create(order, accepted, problem)},
            "/orders/{orderId}": {"get": _read(view, problem)},
            "/orders/{orderId}/cancel": {"post": _cancel(view, problem)},
            "/livez": {"get": _plain("Check that the process is alive.", "live", problem)},
            "/readyz": {"get": _plain("Check that the process is ready.", "ready", problem)},
            "/metrics": {"get": _plain("Read the metrics in the Prometheus text format.", "figures", problem)},
        },
        "components": {"schemas": components},
    }


def _create(order: Any, accepted: Any, problem: Any) -> dict[str, Any]:
    problems = {
        "400": "The body is not a valid order (`errors` lists all violations), or the key is not valid.",
        "412": "The request has If-Match, and a new order has no version.",
        "413": "The body is larger than 1 MiB.",
        "415": "The body is not declared as JSON.",
        "422": "The key was used for a different order.",
        "503": "The order could not be stored, or too many orders are waiting. Try again.",
    }
    key = {
        "name": "idempotency-key",
        "in": "header",
        "description": "With a key, you can safely send the same order again: the response is the same, and there is"
        " only one order. Two requests are the same if they decode to the same order. The sequence of the lines makes"
        " no difference.",
        "schema": {"type": "string", "pattern": f"^[!-~]{{1,{KEY_MAX_CHARACTERS}}}$"},
    }
    replayed = {"description": "An earlier request with this key placed the order.", "schema": {"const": "true"}}
    return {
        "operationId": "createOrder",
        "summary": "Place an order.",
        "parameters": [key],
        "requestBody": {"required": True, "content": {"application/json": {"schema": order, "example": _EXAMPLE}}},
        "responses": {
            "201": _response("The order is stored.", accepted, {"location": _STRING, "idempotent-replayed": replayed}),
            **{status: _problem(text, problem) for status, text in problems.items()},
        },
    }


def _read(view: Any, problem: Any) -> dict[str, Any]:
    applied = {"description": "The server waited as preferred.", **_STRING}
    head = {"etag": _STRING, "x-cache": {"schema": {"enum": ["HIT", "MISS", "BYPASS"]}}, "preference-applied": applied}
    prefer = {
        "name": "prefer",
        "in": "header",
        "description": f"`wait=N`: wait up to N seconds, at most {WAIT_MAX_SECONDS}, until the order settles."
        " If too many reads wait, the server responds at once.",
        "schema": {"type": "string"},
        "example": "wait=10",
    }
    return {
        "operationId": "readOrder",
        "summary": "Read an order.",
        "parameters": [_ORDER_ID, *_CONDITIONS, prefer],
        "responses": {
            "200": _response("The order is settled.", view, head),
            "202": _response(
                "The order is not settled yet. Read it again later.", view, {**head, "retry-after": _STRING}
            ),
            "304": {"description": "`if-none-match` contains the order's version.", "headers": {**head, **_TRACE}},
            "404": _problem("The order does not exist.", problem),
            "412": _problem("`if-match` does not contain the order's version.", problem),
            "503": _problem("The order could not be read. Try again.", problem),
        },
    }


def _cancel(view: Any, problem: Any) -> dict[str, Any]:
    return {
        "operationId": "cancelOrder",
        "summary": "Cancel an order, also a confirmed one. Cancelling again changes nothing.",
        "parameters": [_ORDER_ID, *_CONDITIONS],
        "responses": {
            "202": _response(
                "The order is cancelled. Its payment is voided and its stock released.", view, {"etag": _STRING}
            ),
            "404": _problem("The order does not exist.", problem),
            "409": _problem("The order is FAILED.", problem),
            "412": _problem("`if-match` or `if-none-match` does not allow the order's version.", problem),
            "503": _problem("The order may be cancelled or not. Try again.", problem),
        },
    }


def _plain(summary: str, operation: str, problem: Any) -> dict[str, Any]:
    responses = {"200": {"description": "Success.", "headers": _TRACE}}
    if operation == "ready":
        responses["503"] = _problem("The process is not ready.", problem)
    if operation == "figures":
        responses["404"] = _problem("The gateway serves its metrics on `METRICS_PORT` only.", problem)
    return {"operationId": operation, "summary": summary, "responses": responses}


def _response(description: str, schema: Any, headers: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"description": description, "headers": {**headers, **_TRACE}, "content": content}


def _problem(description: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "headers": _TRACE, "content": {"application/problem+json": {"schema": schema}}}
