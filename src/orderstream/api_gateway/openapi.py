"""The OpenAPI document, generated from the types of the API."""

from typing import Any

import msgspec

from orderstream.api_gateway.problems import ProblemBody
from orderstream.api_gateway.schemas import OrderAccepted, OrderRequest, OrderView

_EXAMPLE = {
    "userId": "u-1",
    "items": [{"sku": "SKU-1", "qty": 1, "price": 129.0}],
    "amount": 129.0,
    "currency": "USD",
}
_TRACE = {"traceresponse": {"description": "W3C trace context of this request.", "schema": {"type": "string"}}}
_STRING = {"schema": {"type": "string"}}


def document() -> dict[str, Any]:
    """Return the document as JSON-ready data."""
    (order, accepted, view, problem), components = msgspec.json.schema_components(
        [OrderRequest, OrderAccepted, OrderView, ProblemBody], ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "OrderStream", "version": "1", "description": "Accepts orders, and tells how they stand."},
        "paths": {
            "/orders": {"post": _create(order, accepted, problem)},
            "/orders/{orderId}": {"get": _read(view, problem)},
            "/livez": {"get": _plain("The process lives.", "live", problem)},
            "/readyz": {"get": _plain("The process can work.", "ready", problem)},
            "/metrics": {"get": _plain("Figures in the Prometheus text format.", "figures", problem)},
        },
        "components": {"schemas": components},
    }


def _create(order: Any, accepted: Any, problem: Any) -> dict[str, Any]:
    problems = {
        "400": "The body is not an order; `errors` says everything that is wrong with it.",
        "413": "The body is longer than 1 MiB.",
        "415": "The body is not declared to be JSON.",
        "503": "The order could not be stored; ask again.",
    }
    return {
        "operationId": "createOrder",
        "summary": "Place an order.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": order, "example": _EXAMPLE}}},
        "responses": {
            "201": _response("The order is durable.", accepted, {"location": _STRING}),
            **{status: _problem(text, problem) for status, text in problems.items()},
        },
    }


def _read(view: Any, problem: Any) -> dict[str, Any]:
    head = {"etag": _STRING, "x-cache": {"schema": {"enum": ["HIT", "MISS", "BYPASS"]}}}
    identifier = {"name": "orderId", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
    return {
        "operationId": "readOrder",
        "summary": "Read an order.",
        "parameters": [identifier, {"name": "if-none-match", "in": "header", "schema": {"type": "string"}}],
        "responses": {
            "200": _response("The order is settled.", view, head),
            "202": _response("The order is under way; ask again.", view, {**head, "retry-after": _STRING}),
            "304": {"description": "The order is as `if-none-match` says.", "headers": {**head, **_TRACE}},
            "404": _problem("There is no such order.", problem),
            "503": _problem("The order could not be read; ask again.", problem),
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
