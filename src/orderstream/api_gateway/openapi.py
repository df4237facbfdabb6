"""The OpenAPI document, generated from the types of the API."""

from typing import Any

import msgspec

from orderstream.api_gateway.http.problems import ProblemBody
from orderstream.api_gateway.orders.idempotency import KEY_MAX_CHARACTERS
from orderstream.api_gateway.orders.waiters import WAIT_MAX_SECONDS
from orderstream.api_gateway.schemas import OrderAccepted, OrderRequest, OrderView

_DESCRIPTION = (
    "Accepts orders, and tells how they stand. It is an API for servers: it sends no CORS headers, and OPTIONS is"
    " answered 405, so a browser lets no page of another origin read an answer."
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
            "/livez": {"get": _plain("The process lives.", "live", problem)},
            "/readyz": {"get": _plain("The process can work.", "ready", problem)},
            "/metrics": {"get": _plain("Figures in the Prometheus text format.", "figures", problem)},
        },
        "components": {"schemas": components},
    }


def _create(order: Any, accepted: Any, problem: Any) -> dict[str, Any]:
    problems = {
        "400": "The body is not an order (`errors` says everything that is wrong with it), or the key cannot be one.",
        "412": "If-Match is given, and there is no version to match.",
        "413": "The body is longer than 1 MiB.",
        "415": "The body is not declared to be JSON.",
        "422": "The key was used for another order.",
        "503": "The order could not be stored, or too many are waiting; ask again.",
    }
    key = {
        "name": "idempotency-key",
        "in": "header",
        "description": "With a key the same order may be sent again: the reply is the same, and there is one order."
        " Orders are the same if what is decoded from them is; the order of their lines makes no difference.",
        "schema": {"type": "string", "pattern": f"^[!-~]{{1,{KEY_MAX_CHARACTERS}}}$"},
    }
    replayed = {"description": "The order was accepted before, with this key.", "schema": {"const": "true"}}
    return {
        "operationId": "createOrder",
        "summary": "Place an order.",
        "parameters": [key],
        "requestBody": {"required": True, "content": {"application/json": {"schema": order, "example": _EXAMPLE}}},
        "responses": {
            "201": _response("The order is durable.", accepted, {"location": _STRING, "idempotent-replayed": replayed}),
            **{status: _problem(text, problem) for status, text in problems.items()},
        },
    }


def _read(view: Any, problem: Any) -> dict[str, Any]:
    applied = {"description": "The reply was held back as preferred.", **_STRING}
    head = {"etag": _STRING, "x-cache": {"schema": {"enum": ["HIT", "MISS", "BYPASS"]}}, "preference-applied": applied}
    prefer = {
        "name": "prefer",
        "in": "header",
        "description": "`wait=N` holds the reply back until the order settles, for N seconds,"
        f" {WAIT_MAX_SECONDS} at most. The preference is not applied while too many wait.",
        "schema": {"type": "string"},
        "example": "wait=10",
    }
    return {
        "operationId": "readOrder",
        "summary": "Read an order.",
        "parameters": [_ORDER_ID, *_CONDITIONS, prefer],
        "responses": {
            "200": _response("The order is settled.", view, head),
            "202": _response("The order is under way; ask again.", view, {**head, "retry-after": _STRING}),
            "304": {"description": "The order is as `if-none-match` says.", "headers": {**head, **_TRACE}},
            "404": _problem("There is no such order.", problem),
            "412": _problem("The order has another version than `if-match` says.", problem),
            "503": _problem("The order could not be read; ask again.", problem),
        },
    }


def _cancel(view: Any, problem: Any) -> dict[str, Any]:
    return {
        "operationId": "cancelOrder",
        "summary": "Cancel an order, also one that is confirmed; cancelling again changes nothing.",
        "parameters": [_ORDER_ID, *_CONDITIONS],
        "responses": {
            "202": _response(
                "The order is cancelled; its payment and stock are being given back.", view, {"etag": _STRING}
            ),
            "404": _problem("There is no such order.", problem),
            "409": _problem("The order has failed.", problem),
            "412": _problem("The order has a version that `if-match` or `if-none-match` does not allow.", problem),
            "503": _problem("It is not known to be cancelled; ask again.", problem),
        },
    }


def _plain(summary: str, operation: str, problem: Any) -> dict[str, Any]:
    responses = {"200": {"description": "Yes.", "headers": _TRACE}}
    if operation == "ready":
        responses["503"] = _problem("Not now.", problem)
    return {"operationId": operation, "summary": summary, "responses": responses}


def _response(description: str, schema: Any, headers: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"description": description, "headers": {**headers, **_TRACE}, "content": content}


def _problem(description: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "headers": _TRACE, "content": {"application/problem+json": {"schema": schema}}}
