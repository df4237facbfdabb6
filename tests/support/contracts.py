"""Checks records against the published contracts: the files, not the types from which they are generated."""

import json
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from ruamel.yaml import YAML

CONTRACTS = Path(__file__).parents[2] / "contracts"

_formats = FormatChecker(formats=["uuid"])


@_formats.checks("date-time", raises=ValueError)
def _is_utc(text: object) -> bool:
    return not isinstance(text, str) or datetime.fromisoformat(text).utcoffset() == timedelta(0)


@_formats.checks("decimal", raises=ArithmeticError)
def _is_positive(text: object) -> bool:
    return not isinstance(text, str) or Decimal(text) > 0


@cache
def _validator(file: str) -> Draft202012Validator:
    schema = json.loads((CONTRACTS / file).read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=_formats)


def violations(file: str, instance: Any) -> list[str]:
    """Return the violations of the schema in `file`, a path below contracts/."""
    return [f"{error.json_path}: {error.message}" for error in _validator(file).iter_errors(instance)]


@cache
def payment_provider() -> Any:
    """Return the OpenAPI document of the payment provider's protocol."""
    return YAML(typ="safe").load(CONTRACTS / "payment-provider.openapi.yaml")


def provider_violations(schema: str | dict[str, Any], instance: Any) -> list[str]:
    """Return the violations of a schema of the payment provider's document, given by its name or in full."""
    wanted = {"$ref": f"#/components/schemas/{schema}"} if isinstance(schema, str) else schema
    validator = Draft202012Validator(
        {**wanted, "components": payment_provider()["components"]}, format_checker=_formats
    )
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(instance)]


def assert_event(topic: str, key: bytes | None, value: bytes | None) -> dict[str, Any]:
    """Check that a record of `topic` is a valid event with its order id as key, and return its body."""
    assert key is not None
    assert value is not None
    body: dict[str, Any] = json.loads(value)
    assert violations(f"events/{topic}.schema.json", body) == []
    assert key.decode() == body["correlationId"] == body["payload"]["orderId"]
    return body


def assert_dead_letter_headers(headers: dict[str, bytes]) -> dict[str, str]:
    """Check the headers of a dead letter that describe its error, and return them."""
    notes = {name: value.decode() for name, value in headers.items() if name.startswith("dlq-")}
    assert violations("dead-letter-headers.schema.json", notes) == []
    return notes
