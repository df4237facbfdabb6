"""A SKU as one segment of a path. A SKU is any text, so that it may be `..`, or contain `/`, `%` or a line break.

A browser removes the segments `.` and `..` even if they are percent-encoded, and a server may decode `%2F` before it
splits the path. So only a simple SKU stands in a path as it is. Any other is `~` and its UTF-8 in base64url.
"""

import base64
import binascii
import re
import shlex

from orderstream.domain.limits import SKU_MAX_CHARACTERS

_is_simple = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", re.ASCII).fullmatch
_ENCODED = "~"


class SkuError(ValueError):
    """The text names no SKU that an order could have."""


def sku_key(sku: str) -> str:
    """Return the segment of a path that stands for a SKU."""
    if _is_simple(sku):
        return sku
    return _ENCODED + base64.urlsafe_b64encode(sku.encode()).decode().rstrip("=")


def sku_of(key: str) -> str:
    """Return the SKU that a segment stands for. Raises SkuError."""
    if not key.startswith(_ENCODED):
        return valid_sku(key)
    data = key.removeprefix(_ENCODED)
    try:
        return valid_sku(base64.b64decode(data + "=" * (-len(data) % 4), altchars=b"-_", validate=True).decode())
    except (binascii.Error, UnicodeDecodeError):
        raise SkuError("the part of the path that stands for the SKU is not base64url of UTF-8") from None


def shell_word(sku: str) -> str:
    """Return a word that bash turns into the SKU. It has no control characters."""
    if sku.isprintable():
        return shlex.quote(sku)
    return "$'" + "".join(_escaped(character) for character in sku) + "'"


def _escaped(character: str) -> str:
    if character in "'\\":
        return f"\\{character}"
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in character.encode())


def valid_sku(sku: str) -> str:
    """Return a SKU. Raises SkuError if no order can name it."""
    if not 1 <= len(sku) <= SKU_MAX_CHARACTERS:
        raise SkuError(f"a SKU has 1 to {SKU_MAX_CHARACTERS} characters")
    if "\0" in sku:
        raise SkuError("a SKU has no NUL character")
    return sku
