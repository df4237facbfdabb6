"""What anyone may have written to a topic, made safe for a terminal: an escape sequence could rewrite what it shows."""

import re

_UNSAFE = re.compile(r"[^\S \n\t]|[\x00-\x08\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, line ends other than a line feed, and those that change the direction of a text."""


def printable(text: str) -> str:
    """Return the text with an escape for each character that a terminal obeys instead of showing it."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def in_one_line(text: str) -> str:
    """Do as `printable`, and also escape line feeds and tabs."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
