"""Parses the values of header fields (RFC 9110): parameters, lists, quoted strings and entity tags.

A comma or semicolon inside a quoted string is not a separator. Each function reads its field once, in linear time.
"""

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

PARTS_MAX = 100
"""Parameters of one element, and elements of one Prefer, that are read. A media type with more is not accepted."""

Parameter = tuple[str, str]
"""A name in lower case and a value without quotes. The value is empty if there is none."""

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'[ \t]*({_WORD})(?:[ \t]*=[ \t]*(?:({_WORD})|"((?:[^"\\]|\\.)*)"))?[ \t]*', re.DOTALL)
_MEDIA_TYPE = re.compile(rf"[ \t]*({_WORD}/{_WORD})[ \t]*")
_ENTITY_TAG = re.compile(rb'[ \t,]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?=,|\Z)')
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_END_OF_ELEMENT = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*"?)*', re.DOTALL)


class MediaType(Struct, frozen=True):
    """A media type in lower case, and its parameters in the order of the field."""

    name: str
    parameters: Sequence[Parameter]


def media_type(field: bytes) -> MediaType | None:
    """Parse a Content-Type (RFC 9110, 8.3), also with white space around `=`. Return None if it is no media type."""
    text = field.decode("latin-1")
    match = _MEDIA_TYPE.match(text)
    if match is None:
        return None
    parameters, end = _parameters(text, match.end())
    return MediaType(match[1].lower(), parameters) if end == len(text) else None


def preferences(field: bytes) -> Iterator[Parameter]:
    """Parse a Prefer (RFC 7240, 2). Yield the preferences in their order, without their parameters.

    A malformed element yields its name with an empty value, or nothing if it has no name.
    """
    text = field.decode("latin-1")
    position = 0
    for _ in range(PARTS_MAX):
        if position >= len(text):
            return
        match = _PARAMETER.match(text, position)
        if match is not None:
            _, end = _parameters(text, match.end())
            well_formed = end == len(text) or text[end] == ","
            yield _parameter(match) if well_formed else (match[1].lower(), "")
            position = end
        # Skip the rest of the element and the comma after it.
        skipped = _END_OF_ELEMENT.match(text, position)
        assert skipped is not None
        position = skipped.end() + 1


def entity_tags(field: bytes) -> list[bytes]:
    """Parse the tags of If-Match or If-None-Match (RFC 9110, 8.8.3), up to the first malformed tag.

    The field `*` has one tag, `*`.
    """
    if field.strip(b" \t") == b"*":
        return [b"*"]
    tags: list[bytes] = []
    position = 0
    while match := _ENTITY_TAG.match(field, position):
        tags.append(match[1])
        position = match.end()
    return tags


def _parameters(text: str, position: int) -> tuple[list[Parameter], int]:
    """Parse all `;name=value` from `position`. Return the parameters and the position after them."""
    found: list[Parameter] = []
    for _ in range(PARTS_MAX):
        if position >= len(text) or text[position] != ";":
            break
        position += 1
        match = _PARAMETER.match(text, position)
        if match is not None:
            found.append(_parameter(match))
            position = match.end()
        else:
            while position < len(text) and text[position] in " \t":
                position += 1
    return found, position


def _parameter(match: re.Match[str]) -> Parameter:
    name, token, quoted = match.groups()
    return name.lower(), token or _QUOTED_PAIR.sub(r"\1", quoted or "")
