"""Order ids: UUIDs of version 7, so that new rows stand together at the end of every index."""

import os
import re
from datetime import datetime

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_VERSION_AND_VARIANT = 0x7 << 76 | 0b10 << 62
_RANDOM_BITS = (1 << 76) - 1 ^ 0b11 << 62


def new_order_id(at: datetime) -> str:
    """Return a new id in canonical form; ids of different milliseconds sort by time."""
    milliseconds = int(at.timestamp() * 1000)
    random_bits = int.from_bytes(os.urandom(10), "big") & _RANDOM_BITS
    digits = f"{milliseconds << 80 | _VERSION_AND_VARIANT | random_bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def canonical(text: str) -> str | None:
    """Return an order id as it is stored, in lower case; None if `text` is no UUID and so no order's id."""
    return text.lower() if _UUID.fullmatch(text) else None
