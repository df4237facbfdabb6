"""The documentation pages are complete and correct, and load nothing from other hosts."""

import re
from typing import Any

import jsonschema
import msgspec
import pytest

from orderstream.api_gateway.openapi import document
from tests.integration.api_gateway.conftest import Gateway

_ADDRESS = re.compile(r"(https?:)?//[a-z0-9]", re.IGNORECASE)


def test_the_docs_page_loads_everything_from_the_gateway(shared: Gateway) -> None:
    page = shared.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not _ADDRESS.search(page.text)
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(linked) == 4
    for path in linked:
        response = shared.client.get(path)
        assert response.status_code == 200
        assert response.content
    start = shared.client.get("/docs/start.js").text
    assert "/openapi.json" in start
    assert "validatorUrl: null" in start


def test_the_style_sheet_loads_nothing_from_other_hosts(shared: Gateway) -> None:
    styles = shared.client.get("/docs/swagger-ui.css").text
    assert not re.search(r"url\(\s*[\"']?(https?:)?//", styles)
    assert "@import" not in styles


def test_the_openapi_document_has_no_address_of_another_host(shared: Gateway) -> None:
    response = shared.client.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == msgspec.to_builtins(document())
    assert not _ADDRESS.search(response.text)


def test_every_reference_in_the_openapi_document_exists() -> None:
    text = msgspec.json.encode(document()).decode()
    schemas = document()["components"]["schemas"]
    references = set(re.findall(r'"\$ref":"#/components/schemas/([A-Za-z]+)"', text))
    assert references == schemas.keys()


def schema(name: str) -> Any:
    """Return the schema of one component."""
    return {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}


def test_the_documented_example_is_accepted_and_the_responses_match_their_schemas(shared: Gateway) -> None:
    content = document()["paths"]["/orders"]["post"]["requestBody"]["content"]["application/json"]
    jsonschema.validate(content["example"], schema("OrderRequest"))
    accepted = shared.client.post("/orders", json=content["example"])
    assert accepted.status_code == 201
    jsonschema.validate(accepted.json(), schema("OrderAccepted"))
    jsonschema.validate(shared.client.get(accepted.headers["location"]).json(), schema("OrderView"))
    cancelled = shared.client.post(accepted.headers["location"] + "/cancel")
    assert cancelled.status_code == 202
    jsonschema.validate(cancelled.json(), schema("OrderView"))
    for refused in (shared.client.post("/orders", json={}), shared.client.get("/nowhere")):
        jsonschema.validate(refused.json(), schema("ProblemBody"))


def test_every_operation_documents_its_statuses() -> None:
    statuses = {
        operation["operationId"]: set(operation["responses"])
        for methods in document()["paths"].values()
        for operation in methods.values()
    }
    assert statuses["createOrder"] == {"201", "400", "412", "413", "415", "422", "503"}
    assert statuses["readOrder"] == {"200", "202", "304", "404", "412", "503"}
    assert statuses["cancelOrder"] == {"202", "404", "409", "412", "503"}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_every_documented_operation_exists(shared: Gateway, path: str) -> None:
    assert path in document()["paths"]
    assert shared.client.get(path).status_code == 200
