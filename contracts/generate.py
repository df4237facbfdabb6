"""Writes the JSON schemas in contracts/events/ from the types of the domain. Run it with `make contracts`."""

import json
from pathlib import Path

from orderstream.domain.contracts import schemas

FOLDER = Path(__file__).parent / "events"


def file_text(schema: object) -> str:
    """Return the text of a schema's file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every schema, and delete the files of events that no longer exist."""
    texts = {FOLDER / f"{topic}.schema.json": file_text(schema) for topic, schema in schemas().items()}
    for path in set(FOLDER.glob("*.json")) - texts.keys():
        path.unlink()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
