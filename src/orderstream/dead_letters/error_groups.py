"""Groups the errors of dead letters: two errors that differ only in ids, numbers and quoted values have one text."""

import re

from orderstream.dead_letters.printable import in_one_line

GROUP_MAX_CHARACTERS = 200

_UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
_QUOTED = re.compile(r"(?<!\w)'(?:[^'\\]|\\.){0,1000}'")
_NUMBER = re.compile(r"(?<![A-Za-z_])\d[\d.,]*(?![A-Za-z_])|\b0x[0-9a-fA-F]+\b")


def group_of(error: str) -> str:
    """Return the first line of an error without its changing parts, at most GROUP_MAX_CHARACTERS.

    An id becomes `ID`, a text in single quotes becomes `'…'`, and a number becomes `N`. Names in double quotes stay,
    because PostgreSQL writes the names of tables and constraints like this.
    """
    line = error.strip().split("\n", 1)[0]
    text = _NUMBER.sub("N", _QUOTED.sub("'…'", _UUID.sub("ID", line)))
    shown = in_one_line(text)
    return shown if len(shown) <= GROUP_MAX_CHARACTERS else shown[: GROUP_MAX_CHARACTERS - 1] + "…"
