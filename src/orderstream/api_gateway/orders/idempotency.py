"""Idempotency keys (P10): the syntax of a key, and the digest that decides whether two requests are the same.

A key is global and exists as long as its order. Two requests are the same if they decode to the same order. Amounts are
equal as numbers: 129.0, 129.00 and "129.00" are the same. The sequence of the lines, ignored members, and the split of
one SKU over several lines make no difference.
"""

import hashlib
import re

import msgspec
from msgspec import Struct

from orderstream.domain.events import OrderCreated
from orderstream.http_server import problems

KEY_MAX_CHARACTERS = 255

_KEY = re.compile(rb"[\x21-\x7e]{1,%d}" % KEY_MAX_CHARACTERS)
_encode = msgspec.json.Encoder().encode


class IdempotencyKey(Struct, frozen=True):
    """A client's key, and the digest of the order in the request."""

    key: str
    request_hash: bytes


def read_key(header: bytes | None) -> str | None:
    """Return the key in the header field, or None without the field. Raises Problem 400 if it is not a valid key."""
    if header is None:
        return None
    if not _KEY.fullmatch(header):
        raise problems.invalid_idempotency_key(KEY_MAX_CHARACTERS)
    return header.decode()


def request_hash(order: OrderCreated) -> bytes:
    """Return the SHA-256 of an order whose money has the digits of its currency and whose lines are merged."""
    lines = sorted((item.sku, item.qty, item.price) for item in order.items)
    return hashlib.sha256(_encode((order.user_id, order.amount, order.currency, lines))).digest()
