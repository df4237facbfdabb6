"""The published contract of every event: a JSON Schema, generated from the type that services write and read.

A schema is strict about the known fields and allows others, because readers ignore unknown fields.
"""

from typing import Any

import msgspec

from orderstream.domain.events import PAYLOADS, VERSION, Event, Payload, topic_of


def schemas() -> dict[str, dict[str, Any]]:
    """Return a JSON Schema (2020-12) for each topic: topic -> schema."""
    return {topic_of(event_type): _schema(event_type, payload) for event_type, payload in PAYLOADS.items()}


def _schema(event_type: str, payload: type[Payload]) -> dict[str, Any]:
    (reference,), definitions = msgspec.json.schema_components(
        [Event[payload]],  # type: ignore[valid-type]
        ref_template="#/$defs/{name}",
    )
    envelope = definitions.pop(reference["$ref"].rpartition("/")[2])
    fields = envelope["properties"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:orderstream:event:{topic_of(event_type)}",
        "title": f"{event_type}, version {VERSION}",
        "description": envelope["description"],
        "type": "object",
        "properties": fields
        | {
            "type": {"const": event_type},
            "version": {"const": VERSION},
            "correlationId": {"type": "string", "minLength": 1},
        },
        "required": envelope["required"],
        "$defs": definitions,
    }
