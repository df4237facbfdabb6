"""The choice of an endpoint by the path of a request."""

import asyncio

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from orderstream.http_server.routes_by_path import RoutesByPath
from tests.support.asgi import call


def endpoint(name: str) -> ASGIApp:
    """Return an endpoint that answers with its name and the parameters of its path."""

    async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
        body = f"{name} {scope.get('path_params')}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return answer


ROUTES = RoutesByPath(
    {path: endpoint(path) for path in ("/orders", "/orders/{id}", "/orders/{id}/cancel", "/docs/{asset}")},
    default=endpoint("unknown"),
)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/orders", "/orders None"),
        ("/orders/7", "/orders/{id} {'id': '7'}"),
        ("/orders/7/cancel", "/orders/{id}/cancel {'id': '7'}"),
        ("/orders/cancel", "/orders/{id} {'id': 'cancel'}"),
        ("/docs/a.css", "/docs/{asset} {'asset': 'a.css'}"),
        ("/orders/", "unknown None"),
        ("/orders//cancel", "unknown None"),
        ("/orders/7/", "unknown None"),
        ("/orders/7/8", "unknown None"),
        ("/orders/7/8/cancel", "unknown None"),
        ("/Orders", "unknown None"),
        ("/", "unknown None"),
        ("*", "unknown None"),
    ],
)
def test_a_parameter_is_one_whole_segment(path: str, answer: str) -> None:
    assert asyncio.run(call(ROUTES, "GET", path)).body.decode() == answer
