"""The OpenAPI document of the payment provider's protocol is valid, complete and consistent with its examples."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.support.contracts import payment_provider, provider_violations

METHODS = ("get", "post", "put", "patch", "delete", "head", "options", "trace")
KEY = "019b8f2e-6c3a-7000-8000-000000000001"


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of the document."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def resolve(value: Any) -> Any:
    """Return an object of the document, or the target of its reference."""
    while isinstance(value, dict) and value.keys() == {"$ref"}:
        found = payment_provider()
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the path, the method and the object of every operation, and of the webhook."""
    for path, item in {**payment_provider()["paths"], **payment_provider()["webhooks"]}.items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def examples() -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield every example with its schema."""
    for node in nodes(payment_provider()):
        if "schema" in node:
            given = [example["value"] for example in node.get("examples", {}).values()]
            given += [node["example"]] if "example" in node else []
            for example in given:
                yield node["schema"], example


def test_the_document_has_the_version_and_the_required_parts() -> None:
    document = payment_provider()
    assert document["openapi"] == "3.1.0"
    assert document["info"].keys() >= {"title", "version", "description"}
    assert {f"{method} {path}" for path, method, _ in operations()} == {
        "post /v1/payments",
        "get /v1/payments",
        "get /v1/payments/{key}",
        "post /v1/payments/{key}/void",
        "get /v1/payments/{key}/history",
        "post paymentDecided",
    }


def test_every_reference_exists_and_every_component_is_used() -> None:
    references = {node["$ref"] for node in nodes(payment_provider()) if "$ref" in node}
    components = payment_provider()["components"]
    assert references == {
        f"#/components/{kind}/{name}"
        for kind, named in components.items()
        if kind != "securitySchemes"
        for name in named
    }
    schemes = {name for node in nodes(payment_provider()) for entry in node.get("security", ()) for name in entry}
    assert schemes == components["securitySchemes"].keys()


def test_every_schema_is_valid() -> None:
    schemas = [node["schema"] for node in nodes(payment_provider()) if "schema" in node]
    for schema in (*schemas, *payment_provider()["components"]["schemas"].values()):
        Draft202012Validator.check_schema(schema)


def test_every_operation_has_a_name_a_summary_its_parameters_and_described_responses() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    for path, _, operation in operations():
        assert operation["summary"].endswith(".")
        parameters = [resolve(parameter) for parameter in operation.get("parameters", ())]
        in_path = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        assert all(parameter["description"] and parameter["schema"] for parameter in parameters)
        for status, response in operation["responses"].items():
            assert re.fullmatch("[1-5](?:XX|[0-9]{2})", status)
            assert resolve(response)["description"]


def test_only_answers_that_promise_no_action_have_retry_after() -> None:
    for _, _, operation in operations():
        told = {status for status, response in operation["responses"].items() if "headers" in resolve(response)}
        assert told == operation["responses"].keys() & {"429", "503"}


def test_every_body_has_an_example_and_every_example_matches_its_schema() -> None:
    for node in nodes(payment_provider()):
        for body in node.get("content", {}).values():
            assert "example" in body or "examples" in body
    pairs = list(examples())
    assert len(pairs) > 15
    assert [(example, found) for schema, example in pairs if (found := provider_violations(schema, example))] == []


PAYMENT = {"key": KEY, "status": "authorized", "amount": "12.50", "currency": "EUR"}


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ("PaymentRequest", {"amount": 12.5, "currency": "EUR"}),
        ("PaymentRequest", {"amount": "1e2", "currency": "EUR"}),
        ("PaymentRequest", {"amount": "12.50", "currency": "EUR", "key": KEY}),
        ("PaymentAnswer", PAYMENT | {"status": "nothing_to_void"}),
        ("PaymentAnswer", PAYMENT | {"amount": 12.5}),
        ("PaymentAnswer", PAYMENT | {"amount": None}),
        ("PaymentAnswer", PAYMENT | {"currency": None}),
        ("PaymentAnswer", PAYMENT | {"key": "a/b"}),
        ("VoidAnswer", {"key": KEY, "status": "authorized"}),
        ("Payment", PAYMENT),
        ("History", {"key": KEY, "entries": [{"kind": "refund", "amount": "1", "currency": "EUR", "at": "now"}]}),
        ("PaymentPage", {"payments": []}),
        ("PaymentDecided", {}),
    ],
)
def test_an_answer_that_breaks_the_protocol_violates_its_schema(schema: str, wrong: Any) -> None:
    assert provider_violations(schema, wrong)
