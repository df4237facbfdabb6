"""The cursor of a list of orders: the id below which the next page begins, as an opaque text for a URL.

It holds an order id and nothing else. A cursor that a client made up can only begin the list elsewhere.
"""

import base64
import binascii
import re

from orderstream.http_server.problems import Problem

_VERSION = b"1"
_ID = re.compile(rb"[0-9a-f-]{1,64}")
_CURSOR = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)


def to_cursor(order_id: str) -> str:
    """Return the cursor of the page that begins after this order."""
    return base64.urlsafe_b64encode(_VERSION + order_id.encode()).rstrip(b"=").decode()


def from_cursor(cursor: str) -> str:
    """Return the id below which the page begins. Raises Problem 400 for a text that is no cursor."""
    if _CURSOR.fullmatch(cursor):
        try:
            decoded = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except binascii.Error:
            decoded = b""
        if decoded[:1] == _VERSION and _ID.fullmatch(decoded[1:]):
            return decoded[1:].decode()
    raise Problem(
        400, "invalid-cursor", "The cursor is not valid", "cursor must be the `next` of an answer of this list."
    )
