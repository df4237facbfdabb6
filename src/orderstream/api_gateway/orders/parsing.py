"""Parses the body of a new order: typed decoding, and the rules that types cannot express.

A valid body is decoded once. If decoding fails, or if the body has additional members, `violations` checks it member
by member, so that the client gets all violations at once.
"""

from decimal import Decimal

import msgspec
from msgspec import Raw, Struct

from orderstream.api_gateway.orders.quantity import quantity
from orderstream.api_gateway.orders.violations import violations
from orderstream.api_gateway.schemas import ItemsOf, MoneyIn, OrderItem, OrderRequest, Sku, UserId
from orderstream.domain.events import Item, OrderCreated
from orderstream.domain.limits import QTY_MAX
from orderstream.domain.money import MINOR_DIGITS, in_currency, parse
from orderstream.http_server.problems import Violation

_COLONS_OF_ORDER, _COLONS_OF_ITEM = 4, 3

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_decode = msgspec.json.Decoder(OrderRequest).decode


class _ItemAsWritten(Struct):
    sku: Sku
    qty: Raw
    price: MoneyIn


class _RequestAsWritten(Struct, rename="camel"):
    user_id: UserId
    items: ItemsOf[_ItemAsWritten]
    amount: MoneyIn
    currency: str


_decode_as_written = msgspec.json.Decoder(_RequestAsWritten).decode


class InvalidOrderError(Exception):
    """The body is not a valid order. `errors` lists all violations."""

    def __init__(self, errors: list[Violation]) -> None:
        super().__init__(f"{len(errors)} violations")
        self.errors = errors


def read_order(body: bytes, order_id: str) -> OrderCreated:
    """Parse a new order. Money gets the digits of its currency, and lines with the same SKU are merged.

    Raises InvalidOrderError.
    """
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        request = _decoded(body)
        order = _accept(request, order_id)
    except (ValueError, RecursionError) as error:
        raise InvalidOrderError(violations(body) or [Violation("", str(error))]) from error
    # All members are required. If the body has as many colons as members, it has no other and no repeated member.
    only_members = body.count(b":") == _COLONS_OF_ORDER + _COLONS_OF_ITEM * len(request.items)
    if (not only_members or b"\\u0000" in body) and (found := violations(body)):
        raise InvalidOrderError(found)
    return order


def _decoded(body: bytes) -> OrderRequest:
    """Decode a body. If the typed decoder rejects it, decode it again and read quantities such as 1.0 as integers."""
    try:
        return _decode(body)
    except msgspec.ValidationError:
        request = _decode_as_written(body)
        return OrderRequest(
            request.user_id,
            [OrderItem(item.sku, quantity(bytes(item.qty).decode()), item.price) for item in request.items],
            request.amount,
            request.currency,
        )


def _accept(request: OrderRequest, order_id: str) -> OrderCreated:
    currency = request.currency
    if currency not in MINOR_DIGITS:
        raise ValueError("unknown currency")
    lines: dict[str, Item] = {}
    for item in request.items:
        price = in_currency(_money(item.price), currency)
        qty = item.qty
        if (earlier := lines.get(item.sku)) is not None:
            qty += earlier.qty
            if earlier.price != price or qty > QTY_MAX:
                raise ValueError("lines of one SKU that cannot be merged")
        lines[item.sku] = Item(sku=item.sku, qty=qty, price=price)
    return OrderCreated(
        order_id=order_id,
        user_id=request.user_id,
        items=tuple(lines.values()),
        amount=in_currency(_money(request.amount), currency),
        currency=currency,
    )


def _money(raw: Raw) -> Decimal:
    text = bytes(raw).decode()
    if text[0] == '"':
        return parse(text[1:-1], quoted=True)
    return parse(text, quoted=False)
