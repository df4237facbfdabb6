"""Requests of pages of another origin: no response has a CORS header, so a browser does not let the page read it."""

import pytest

from orderstream.postgres.connect import Connection
from tests.integration.api_gateway.conftest import Gateway
from tests.integration.api_gateway.test_get import JSON, place
from tests.integration.api_gateway.test_post import problem
from tests.support.bodies import README

ORIGIN = {"origin": "https://shop.example"}
PREFLIGHT = {
    **ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type, idempotency-key",
}


@pytest.mark.parametrize(("path", "allow"), [("/orders", "POST"), ("/orders/x", "GET, HEAD"), ("/readyz", "GET, HEAD")])
def test_a_preflight_request_is_refused(shared: Gateway, path: str, allow: str) -> None:
    response = shared.client.options(path, headers=PREFLIGHT)
    assert (response.status_code, response.headers["allow"]) == (405, allow)
    problem(response, "method-not-allowed")
    assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_browser_cannot_place_an_order_without_a_preflight(shared: Gateway, rows: Connection, kind: str) -> None:
    """A browser sends these content types to another origin without a preflight."""
    before = rows.execute("SELECT count(*) FROM orders").fetchone()
    response = shared.client.post("/orders", content=README, headers={**ORIGIN, "content-type": kind})
    assert response.status_code == 415
    assert rows.execute("SELECT count(*) FROM orders").fetchone() == before


def test_no_response_lets_a_page_of_another_origin_read_it(shared: Gateway) -> None:
    path = place(shared)
    responses = [
        shared.client.get(path, headers=ORIGIN),
        shared.client.get("/openapi.json", headers=ORIGIN),
        shared.client.post("/orders", content=README, headers={**ORIGIN, **JSON}),
    ]
    assert [response.status_code for response in responses] == [202, 200, 201]
    assert not [name for response in responses for name in response.headers if name.startswith("access-control-")]
