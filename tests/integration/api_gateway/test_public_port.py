"""The public port: /metrics can be moved off it, and it has no operation for operators."""

import asyncio

import httpx
import pytest

from tests.integration.api_gateway.application import application
from tests.integration.api_gateway.conftest import Gateway, Start, free_port

PUBLIC = {
    "/orders": {"POST"},
    "/orders/{order_id}": {"GET"},
    "/orders/{order_id}/cancel": {"POST"},
    "/livez": {"GET"},
    "/readyz": {"GET"},
    "/metrics": {"GET"},
    "/openapi.json": {"GET"},
    "/docs": {"GET"},
    "/docs/{asset}": {"GET"},
}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def test_with_a_metrics_port_only_the_page_of_the_process_has_the_metrics(start: Start) -> None:
    page = free_port()
    gateway = start(METRICS_PORT=str(page))
    moved = gateway.client.get("/metrics")
    assert (moved.status_code, moved.json()["type"]) == (404, "urn:orderstream:problem:not-found")
    assert [gateway.client.get(path).status_code for path in ("/livez", "/readyz")] == [200, 200]
    metrics = httpx.get(f"http://127.0.0.1:{page}/metrics", trust_env=False)
    assert 'route="GET /readyz",status="200"' in metrics.text


@pytest.mark.parametrize(("settings", "status"), [({"GATEWAY_METRICS": "off"}, 404), ({}, 200)])
def test_without_a_metrics_port_the_setting_decides(start: Start, settings: dict[str, str], status: int) -> None:
    assert start(**settings).client.get("/metrics").status_code == status


async def methods(postgres_url: str, redis_url: str) -> dict[str, set[str]]:
    """Return the methods of every route of the API, without HEAD."""
    async with application(postgres_url, redis_url) as api:
        return {
            path: set(endpoint._methods) - {"HEAD"}  # type: ignore[attr-defined]
            for path, endpoint in api.endpoints.items()
        }


def test_the_gateway_has_no_operation_for_operators(shared: Gateway, postgres_url: str, redis_url: str) -> None:
    """A new route must be added to PUBLIC here. Only add it if every client of the shop may use it."""
    assert asyncio.run(methods(postgres_url, redis_url)) == PUBLIC
    for path in ("/api/orders", "/api/dead-letters", "/api/dead-letters/redrive", "/api/flow", "/enter", "/stock"):
        for method in METHODS:
            answer = shared.client.request(method, path, headers={"Authorization": "Bearer any-token"})
            assert (method, path, answer.status_code) == (method, path, 404)
