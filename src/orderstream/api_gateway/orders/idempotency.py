"""Idempotency keys (P10): what a key may be, and when two requests are the same request.

Keys are global, and live as long as their order. Two requests are the same if the orders decoded from them are: 129.0
is 129.00 is "129.00"; neither the order of the lines makes a difference, nor members that are ignored, nor whether a
SKU came in one line or in several that are merged.
"""

import hashlib
import re

import msgspec
from msgspec import Struct

from orderstream.api_gateway.http import problems
from orderstream.domain.events import OrderCreated

KEY_MAX_CHARACTERS = 255

_KEY = re.compile(rb"[\x21-\x7e]{1,%d}" % KEY_MAX_CHARACTERS)
_encode = msgspec.json.Encoder().encode


class IdempotencyKey(Struct, frozen=True):
    """A client's key, and the digest of the order that it stands for."""

    key: str
    request_hash: bytes


def read_key(header: bytes | None) -> str | None:
    """Return the key that a request has, if it has one. Raises Problem 400 for what cannot be a key."""
    if header is None:
        return None
    if not _KEY.fullmatch(header):
        raise problems.invalid_idempotency_key(KEY_MAX_CHARACTERS)
    return header.decode()


def request_hash(order: OrderCreated) -> bytes:
    """Return the SHA-256 of what a client asked for; money has the digits of its currency by now, lines are merged."""
    lines = sorted((item.sku, item.qty, item.price) for item in order.items)
    return hashlib.sha256(_encode((order.user_id, order.amount, order.currency, lines))).digest()
