"""The documentation pages: Swagger UI from the installed package. A browser loads all of it from the gateway."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import msgspec

from orderstream.api_gateway.openapi import document
from orderstream.http_server import problems
from orderstream.http_server.endpoint import Request, Response

_PAGE = b"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>OrderStream API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = b'window.ui = SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", validatorUrl: null});\n'
_ASSETS = {
    "swagger-ui.css": b"text/css; charset=utf-8",
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
    "favicon-32x32.png": b"image/png",
}
_CONTENT_SECURITY_POLICY = (
    b"content-security-policy",
    b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
)
_CACHE_FOR_ONE_HOUR = (b"cache-control", b"max-age=3600")


@cache
def _openapi_document() -> bytes:
    return msgspec.json.encode(document())


@cache
def _asset(name: str) -> bytes:
    spec = find_spec("swagger_ui")
    if spec is None or not spec.submodule_search_locations:
        raise problems.not_found("page")
    return (Path(spec.submodule_search_locations[0]) / "static" / name).read_bytes()


async def openapi_json(_request: Request) -> Response:
    """GET /openapi.json: return the OpenAPI document."""
    return Response(200, [(b"content-type", b"application/json")], _openapi_document())


async def docs_page(_request: Request) -> Response:
    """GET /docs: return the page of Swagger UI."""
    return Response(200, [(b"content-type", b"text/html; charset=utf-8"), _CONTENT_SECURITY_POLICY], _PAGE)


async def docs_asset(request: Request) -> Response:
    """GET /docs/{asset}: return a style sheet, script or icon of the page. Raises Problem 404."""
    name = request.path_params["asset"]
    if name == "start.js":
        return Response(200, [(b"content-type", b"text/javascript; charset=utf-8"), _CACHE_FOR_ONE_HOUR], _START)
    if name not in _ASSETS:
        raise problems.not_found("page")
    return Response(200, [(b"content-type", _ASSETS[name]), _CACHE_FOR_ONE_HOUR], _asset(name))
