"""Order ids: UUIDs of version 7, so that new rows are next to each other at the end of every index.

The time in an id comes from the gateway's clock, which may be wrong. Only the position in an index depends on it.
"""

import os
import re

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_VERSION_AND_VARIANT = 0x7 << 76 | 0b10 << 62
_MILLISECONDS_MAX = (1 << 48) - 1
_RANDOM_BYTES, _IDS_AT_ONCE = 10, 256
_RANDOM_BITS = (1 << 76) - 1 ^ 0b11 << 62


class _RandomBytes:
    """Random bytes of the operating system, fetched for many ids at once, because each fetch is a system call."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def take(self) -> bytes:
        """Return bytes that were not returned before."""
        if self._at == len(self._bytes):
            self._bytes = os.urandom(_RANDOM_BYTES * _IDS_AT_ONCE)
            self._at = 0
        begin = self._at
        self._at += _RANDOM_BYTES
        return self._bytes[begin : self._at]


_random = _RandomBytes()


def new_order_id(unix_seconds: float) -> str:
    """Return a new id in canonical form. Ids of different milliseconds sort by time. For one thread."""
    milliseconds = min(max(0, int(unix_seconds * 1000)), _MILLISECONDS_MAX)
    random_bits = int.from_bytes(_random.take(), "big") & _RANDOM_BITS
    digits = f"{milliseconds << 80 | _VERSION_AND_VARIANT | random_bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def canonical(text: str) -> str | None:
    """Return the order id in lower case, as it is stored. Return None if `text` is not a UUID."""
    return text.lower() if _UUID.fullmatch(text) else None
