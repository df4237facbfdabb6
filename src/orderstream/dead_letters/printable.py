"""Makes text from a topic safe for a terminal. Anyone may have written the text, with escape sequences in it."""

import re

_UNSAFE = re.compile(r"[^\S \n\t]|[\x00-\x08\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, line ends other than a line feed, and characters that change the direction of text."""


def printable(text: str) -> str:
    """Return the text with an escape for each character that a terminal would interpret instead of showing it."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def in_one_line(text: str) -> str:
    """Return the text like `printable`, with escapes also for line feeds and tabs."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
