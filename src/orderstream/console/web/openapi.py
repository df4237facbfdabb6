"""The OpenAPI 3.1 document of the operator's API, generated from its operations."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from orderstream.console.web.api import Operation
from orderstream.http_server.problems import ProblemBody

_DESCRIPTION = (
    "What an operator can see and do. Send the operator's token as a bearer token. Operations with POST change"
    " something, and each of them is recorded with its actor, time, reason and result."
)


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the document as JSON-ready data."""
    types: list[Any] = [ProblemBody]
    for operation in operations:
        types += [kind for kind in (operation.answer, operation.query, operation.body) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schema_of = {id(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _described(operation, path, schema_of, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": "OrderStream operator", "version": "1", "description": _DESCRIPTION},
        "security": [{"token": []}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _described(operation: Operation, path: str, schema_of: dict[int, Any], components: dict[str, Any]) -> Any:
    problem = {"application/problem+json": {"schema": schema_of[id(ProblemBody)]}}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    if operation.query is not None:
        parameters += _query_parameters(schema_of[id(operation.query)], components)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            str(operation.status): {
                "description": "The answer.",
                "content": {"application/json": {"schema": schema_of[id(operation.answer)]}},
            },
            "default": {"description": "A problem (RFC 9457).", "content": problem},
        },
    }
    if operation.body is not None:
        content = {"application/json": {"schema": schema_of[id(operation.body)]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _query_parameters(schema: dict[str, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    found = components[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    required = found.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": content}
        for name, content in found.get("properties", {}).items()
    ]
