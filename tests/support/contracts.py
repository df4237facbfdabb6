"""The published contracts, as a reader of the topics sees them: the files, not the types they were made from."""

import json
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

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
    """Return what in `instance` breaks the schema in `file`, a path below contracts/."""
    return [f"{error.json_path}: {error.message}" for error in _validator(file).iter_errors(instance)]


def assert_event(topic: str, key: bytes | None, value: bytes | None) -> dict[str, Any]:
    """Return the body of a record of `topic`, which must be a valid event whose key is its order's id."""
    assert key is not None
    assert value is not None
    body: dict[str, Any] = json.loads(value)
    assert violations(f"events/{topic}.schema.json", body) == []
    assert key.decode() == body["correlationId"] == body["payload"]["orderId"]
    return body


def assert_dead_letter_headers(headers: dict[str, bytes]) -> dict[str, str]:
    """Return the headers that say what happened, which must keep their contract."""
    notes = {name: value.decode() for name, value in headers.items() if name.startswith("dlq-")}
    assert violations("dead-letter-headers.schema.json", notes) == []
    return notes
