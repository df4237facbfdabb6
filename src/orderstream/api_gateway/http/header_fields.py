"""Reads the values of header fields as RFC 9110 writes them: parameters, lists, quoted strings, entity tags.

A comma or semicolon within a quoted string separates nothing. Each reader makes one pass over its field.
"""

import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

PARTS_MAX = 100
"""Parameters of one element, and elements of one Prefer, that are read. More of a media type make it none of ours."""

Parameter = tuple[str, str]
"""A name in lower case and a value without its quotes; the value is empty where there is none."""

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'[ \t]*({_WORD})(?:[ \t]*=[ \t]*(?:({_WORD})|"((?:[^"\\]|\\.)*)"))?[ \t]*', re.DOTALL)
_MEDIA_TYPE = re.compile(rf"[ \t]*({_WORD}/{_WORD})[ \t]*")
_ENTITY_TAG = re.compile(rb'[ \t,]*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?=,|\Z)')
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_END_OF_ELEMENT = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*"?)*', re.DOTALL)


class MediaType(Struct, frozen=True):
    """A media type in lower case, and its parameters in their order."""

    name: str
    parameters: Sequence[Parameter]


def media_type(field: bytes) -> MediaType | None:
    """Read a Content-Type (RFC 9110, 8.3); white space around `=` is let pass. None for what is not one media type."""
    text = field.decode("latin-1")
    match = _MEDIA_TYPE.match(text)
    if match is None:
        return None
    parameters, end = _parameters(text, match.end())
    return MediaType(match[1].lower(), parameters) if end == len(text) else None


def preferences(field: bytes) -> Iterator[Parameter]:
    """Read a Prefer (RFC 7240, 2): the preferences in their order, without their parameters.

    An element of the list that is malformed gives its name alone, or nothing if it has none.
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
        # The rest of the element is skipped, and the comma behind it.
        skipped = _END_OF_ELEMENT.match(text, position)
        assert skipped is not None
        position = skipped.end() + 1


def entity_tags(field: bytes) -> list[bytes]:
    """Read the tags of If-Match or If-None-Match (RFC 9110, 8.8.3), up to the first that is malformed.

    A field of `*` alone has the one tag `*`.
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
    """Read `;name=value` as often as it stands there. Returns the parameters and where they end."""
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
