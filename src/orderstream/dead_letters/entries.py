"""Converts a dead letter to its row in the index. Every text of the letter may be hostile: it is escaped and cut."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from orderstream.dead_letters.error_groups import group_of
from orderstream.dead_letters.printable import in_one_line
from orderstream.dead_letters.reader import StoredLetter
from orderstream.dead_letters.redrive import number, tries_of

NAME_MAX_CHARACTERS = 100
"""Characters of a reason and of a topic that the index keeps."""
NONE = "-"
"""Stands for a reason or a topic that the letter does not name."""
_INT_MAX = 2**31 - 1
_UUID = re.compile(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Entry(Struct, frozen=True):
    """A row of the index without its id and its state. `topic_id` says of which topic it is a record."""

    service: str
    partition: int
    offset: int
    at: datetime | None
    reason: str
    source_topic: str
    source_partition: int | None
    source_offset: int | None
    error: str
    order_id: str | None
    size: int
    cut: bool
    redriven_from: str | None
    redrive_job: int | None
    tries: int
    topic_id: str


def entry_of(letter: StoredLetter, topic_id: str) -> Entry:
    """Return the row of a letter."""
    notes, key = letter.notes, letter.key or b""
    tries, redriven_from, redrive_job = tries_of(letter)
    partition = number(notes.get("partition"))
    return Entry(
        letter.group,
        letter.partition,
        letter.offset,
        letter.at,
        _name(notes.get("reason")),
        _name(notes.get("topic")),
        partition if partition is not None and partition <= _INT_MAX else None,
        number(notes.get("offset")),
        group_of(notes.get("error", "")),
        key.decode("ascii").lower() if _UUID.fullmatch(key) else None,
        letter.size,
        "cut-from" in notes,
        redriven_from,
        redrive_job,
        tries,
        topic_id,
    )


def columns(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """Return the entries as the parameters of `add_letters`: an array for each column."""
    names = {name: name if name == "tries" else f"{name}s" for name in Entry.__struct_fields__}
    return {plural: [getattr(entry, name) for entry in entries] for name, plural in names.items()}


def _name(text: str | None) -> str:
    return in_one_line(text or NONE)[:NAME_MAX_CHARACTERS]
