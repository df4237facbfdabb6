"""Writes contracts/events/ anew from the types of the domain: `make contracts`."""

import json
from pathlib import Path

from orderstream.domain.contracts import schemas

FOLDER = Path(__file__).parent / "events"


def text(schema: object) -> str:
    """Return a schema as it stands in its file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every schema, and remove those of events that are no more."""
    wanted = {FOLDER / f"{topic}.schema.json": text(schema) for topic, schema in schemas().items()}
    for path in set(FOLDER.glob("*.json")) - wanted.keys():
        path.unlink()
    for path, content in wanted.items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
