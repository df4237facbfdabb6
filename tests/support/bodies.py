"""Bodies for POST /orders: valid orders, and invalid bodies with the pointers of their violations."""

import json
from decimal import Decimal
from typing import Any

from msgspec import Struct

ITEM = '{"sku":"SKU-1","qty":1,"price":129.0}'
README = b'{"userId":"u-1","items":[{"sku":"SKU-1","qty":1,"price":129.0}],\n       "amount":129.0,"currency":"USD"}'


def order(
    user: str = '"u-1"',
    items: str | None = None,
    amount: str = "129.0",
    currency: str = '"USD"',
    more: str = "",
    **item: str,
) -> bytes:
    """Return the order of the README with parts replaced by JSON text. `sku`, `qty` and `price` belong to the item."""
    members = {"sku": '"SKU-1"', "qty": "1", "price": "129.0", **item}
    line = "{" + ",".join(f'"{name}":{text}' for name, text in members.items() if text) + "}"
    return f'{{"userId":{user},"items":{items or f"[{line}]"},"amount":{amount},"currency":{currency}{more}}}'.encode(
        errors="surrogatepass"
    )


def without(*path: str | int) -> bytes:
    """Return the order of the README without one member."""
    body: Any = json.loads(README)
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return json.dumps(body).encode()


def many(count: int) -> str:
    """Return the JSON of `count` different items."""
    return "[" + ",".join(f'{{"sku":"S-{number}","qty":1,"price":1}}' for number in range(count)) + "]"


class Good(Struct, frozen=True):
    """A valid body, and the values to be stored."""

    body: bytes
    amount: Decimal = Decimal("129.00")
    currency: str = "USD"
    items: tuple[tuple[str, int, Decimal], ...] = (("SKU-1", 1, Decimal("129.00")),)
    user: str = "u-1"


class Bad(Struct, frozen=True):
    """An invalid body, and the pointers of its violations."""

    body: bytes
    pointers: frozenset[str]


def _bad(body: bytes, *pointers: str) -> Bad:
    return Bad(body, frozenset(pointers))


GOOD: dict[str, Good] = {
    "the README's": Good(README),
    "amount other than the sum": Good(order(amount="100.5"), amount=Decimal("100.50")),
    "money as strings": Good(order(amount='"129"', price='"129.00"')),
    "money with an exponent": Good(order(amount="1.29e2", price="1290E-1")),
    "trailing zeros": Good(order(amount="129.000", price='"129.0000"')),
    "twelve digits": Good(order(amount="999999999999.99"), amount=Decimal("999999999999.99")),
    "the smallest amount": Good(order(amount="0.01"), amount=Decimal("0.01")),
    "more digits than a float has": Good(order(amount="123456789012.34"), amount=Decimal("123456789012.34")),
    "yen": Good(
        order(amount="5000", price="5000.0", currency='"JPY"'),
        Decimal(5000),
        "JPY",
        (("SKU-1", 1, Decimal(5000)),),
    ),
    "dinar": Good(
        order(amount="1.234", price="1.2", currency='"KWD"'),
        Decimal("1.234"),
        "KWD",
        (("SKU-1", 1, Decimal("1.200")),),
    ),
    "unknown members": Good(order(more=',"note":{"deep":[1,{"userId":"x"}]},"coupon":null', colour='"red"')),
    "colons in strings": Good(order(user='"urn:user:1"'), user="urn:user:1"),
    "escapes": Good(order(user='"\\u0075-1"')),
    "an escaped name of NUL": Good(order(user='"\\\\u0000"'), user="\\u0000"),
    "Unicode": Good(order(user='"Zoë 😀"'), user="Zoë 😀"),
    "an escaped pair": Good(order(user='"\\ud83d\\ude00"'), user="😀"),
    "longest names": Good(
        order(user='"' + "ü" * 128 + '"', sku='"' + "😀" * 64 + '"'),
        user="ü" * 128,
        items=(("😀" * 64, 1, Decimal("129.00")),),
    ),
    "one SKU twice at one price": Good(
        order(items='[{"sku":"A","qty":2,"price":1},{"sku":"B","qty":1,"price":2},{"sku":"A","qty":3,"price":"1.0"}]'),
        items=(("A", 5, Decimal("1.00")), ("B", 1, Decimal("2.00"))),
    ),
    "largest quantity": Good(order(qty="1000000"), items=(("SKU-1", 1_000_000, Decimal("129.00")),)),
    "1,000 items": Good(
        order(items=many(1000)), items=tuple((f"S-{number}", 1, Decimal("1.00")) for number in range(1000))
    ),
    "a byte order mark": Good(b"\xef\xbb\xbf" + README),
    "a whole number with a fraction of zeros": Good(order(qty="1.0")),
    "a whole number with an exponent": Good(order(qty="0.00010E+0004")),
    "a large whole number with a fraction": Good(
        order(qty="1000000.0"), items=(("SKU-1", 1_000_000, Decimal("129.00")),)
    ),
    "white space": Good(b" \n\t" + README + b"\r\n "),
}

BAD: dict[str, Bad] = {
    "empty": _bad(b"", ""),
    "white space only": _bad(b"  ", ""),
    "null": _bad(b"null", ""),
    "a list": _bad(b"[]", ""),
    "a string": _bad(b'"order"', ""),
    "a number": _bad(b"1", ""),
    "truncated": _bad(README[:-1], ""),
    "truncated in a string": _bad(README[:12], ""),
    "two documents": _bad(README + README, ""),
    "two byte order marks": _bad(b"\xef\xbb\xbf" * 2 + README, ""),
    "a byte order mark alone": _bad(b"\xef\xbb\xbf", ""),
    "UTF-16": _bad(README.decode().encode("utf-16"), ""),
    "invalid UTF-8": _bad(order(user='"Q"').replace(b"Q", b"\xff"), ""),
    "invalid UTF-8 in an ignored member": _bad(order(more=',"x":"Q"').replace(b"Q", b"\xff"), ""),
    "invalid UTF-8 in money": _bad(order(amount='"Q"').replace(b"Q", b"\xff"), ""),
    "an encoded surrogate": _bad(order(user='"\ud800"'), ""),
    "a lone surrogate": _bad(order(user='"\\ud800"'), "/userId"),
    "a lone low surrogate": _bad(order(sku='"a\\udc00"'), "/items/0/sku"),
    "a lone surrogate in an ignored member": _bad(order(more=',"x":["\\ud800"]'), "/x/0"),
    "a lone surrogate in a name": _bad(order(more=',"\\ud800":1'), "/?"),
    "deep nesting": _bad(order(more=',"x":' + "[" * 100_000 + "]" * 100_000), ""),
    "deep nesting instead of a price": _bad(order(price="[" * 100_000 + "]" * 100_000), ""),
    "a comment": _bad(order(more="/* */"), ""),
    "a trailing comma": _bad(order(more=","), ""),
    "single quotes": _bad(README.replace(b'"', b"'"), ""),
    "nothing": _bad(b"{}", "/userId", "/items", "/amount", "/currency"),
    "everything null": _bad(
        b'{"userId":null,"items":null,"amount":null,"currency":null}', "/userId", "/items", "/amount", "/currency"
    ),
    "a name twice": _bad(order(more=',"amount":129.0'), "/amount"),
    "a name twice, once escaped": _bad(order(more=',"\\u0061mount":129.0'), "/amount"),
    "a name twice in an item": _bad(order(items=f'[{ITEM[:-1]},"qty":1}}]'), "/items/0/qty"),
    "a name twice in an ignored member": _bad(order(more=',"x":{"~a/":1,"~a/":2}'), "/x/~0a~1"),
    "no userId": _bad(without("userId"), "/userId"),
    "no items": _bad(without("items"), "/items"),
    "no amount": _bad(without("amount"), "/amount"),
    "no currency": _bad(without("currency"), "/currency"),
    "no sku": _bad(without("items", 0, "sku"), "/items/0/sku"),
    "no qty": _bad(without("items", 0, "qty"), "/items/0/qty"),
    "no price": _bad(without("items", 0, "price"), "/items/0/price"),
    "userId null": _bad(order(user="null"), "/userId"),
    "userId empty": _bad(order(user='""'), "/userId"),
    "userId too long": _bad(order(user='"' + "x" * 129 + '"'), "/userId"),
    "userId a number": _bad(order(user="1"), "/userId"),
    "userId an object": _bad(order(user="{}"), "/userId"),
    "userId with NUL": _bad(order(user='"a\\u0000"'), "/userId"),
    "userId with a raw NUL": _bad(order(user='"a\x00"'), ""),
    "items an object": _bad(order(items="{}"), "/items"),
    "items a string": _bad(order(items='"SKU-1"'), "/items"),
    "0 items": _bad(order(items="[]"), "/items"),
    "1,001 items": _bad(order(items=many(1001)), "/items"),
    "an item null": _bad(order(items=f"[{ITEM},null]"), "/items/1"),
    "an item a list": _bad(order(items="[[]]"), "/items/0"),
    "sku null": _bad(order(sku="null"), "/items/0/sku"),
    "sku empty": _bad(order(sku='""'), "/items/0/sku"),
    "sku too long": _bad(order(sku='"' + "x" * 65 + '"'), "/items/0/sku"),
    "sku a number": _bad(order(sku="7"), "/items/0/sku"),
    "sku with NUL": _bad(order(sku='"\\u0000"'), "/items/0/sku"),
    "qty null": _bad(order(qty="null"), "/items/0/qty"),
    "qty zero": _bad(order(qty="0"), "/items/0/qty"),
    "qty minus zero": _bad(order(qty="-0"), "/items/0/qty"),
    "qty negative": _bad(order(qty="-1"), "/items/0/qty"),
    "qty too large": _bad(order(qty="1000001"), "/items/0/qty"),
    "qty huge": _bad(order(qty="9" * 5000), "/items/0/qty"),
    "qty a fraction": _bad(order(qty="1.5"), "/items/0/qty"),
    "qty 1.5": _bad(order(qty="1.5"), "/items/0/qty"),
    "qty almost whole": _bad(order(qty="1.00000000000000000001"), "/items/0/qty"),
    "qty 0.99999999999999999999": _bad(order(qty="0.99999999999999999999"), "/items/0/qty"),
    "qty 1000000.5": _bad(order(qty="1000000.5"), "/items/0/qty"),
    "qty 1000001.0": _bad(order(qty="1000001.0"), "/items/0/qty"),
    "qty 0.0": _bad(order(qty="0.0"), "/items/0/qty"),
    "qty -1.0": _bad(order(qty="-1.0"), "/items/0/qty"),
    "qty 1e400000": _bad(order(qty="1e400000"), "/items/0/qty"),
    "qty 1e-400000": _bad(order(qty="1e-400000"), "/items/0/qty"),
    "qty 0e400000": _bad(order(qty="0e400000"), "/items/0/qty"),
    "qty of 65 characters": _bad(order(qty="1." + "0" * 63), "/items/0/qty"),
    "qty a string 1.0": _bad(order(qty='"1.0"'), "/items/0/qty"),
    "qty 1e400": _bad(order(qty="1e400"), "/items/0/qty"),
    "qty a string": _bad(order(qty='"1"'), "/items/0/qty"),
    "qty true": _bad(order(qty="true"), "/items/0/qty"),
    "qty NaN": _bad(order(qty="NaN"), "/items/0/qty"),
    "currency null": _bad(order(currency="null"), "/currency"),
    "currency empty": _bad(order(currency='""'), "/currency"),
    "currency unknown": _bad(order(currency='"USX"'), "/currency"),
    "currency in small letters": _bad(order(currency='"usd"'), "/currency"),
    "currency a number": _bad(order(currency="840"), "/currency"),
    "currency huge": _bad(order(currency='"' + "U" * 100_000 + '"'), "/currency"),
    "one SKU at two prices": _bad(
        order(items='[{"sku":"A","qty":1,"price":1},{"sku":"A","qty":1,"price":2}]'), "/items/1/price"
    ),
    "one SKU in too many pieces": _bad(
        order(items='[{"sku":"A","qty":1000000,"price":1},{"sku":"A","qty":1,"price":1}]'), "/items/1/qty"
    ),
    "everything wrong at once": _bad(
        b'{"userId":"","items":[{"sku":1,"qty":0,"price":-1},{"qty":"x"}],"amount":"NaN","currency":"EURO"}',
        "/userId",
        "/items/0/sku",
        "/items/0/qty",
        "/items/0/price",
        "/items/1/sku",
        "/items/1/qty",
        "/items/1/price",
        "/amount",
        "/currency",
    ),
}

_BAD_MONEY = {
    "null": "null",
    "true": "true",
    "an object": "{}",
    "a list": "[1]",
    "zero": "0",
    "0.00": "0.00",
    "minus zero": "-0",
    "negative": "-1",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e400": "1e400",
    "1e99999999999": "1e99999999999",
    "1e-99999999999": "1e-99999999999",
    "1e-400": "1e-400",
    "13 digits": "1000000000000",
    "5,000 digits": "9" * 5_000,
    "5,000 digits after the point": "0." + "1" * 5_000,
    "too many digits after the point": "1.001",
    "an empty string": '""',
    "a string with a sign": '"+1"',
    "a negative string": '"-1"',
    "a string with an exponent": '"1e2"',
    "a string with white space": '" 1"',
    "a string with an underscore": '"1_0"',
    "a string with a comma": '"1,00"',
    "a string NaN": '"NaN"',
    "a string without digits before the point": '".5"',
    "a string without digits after the point": '"1."',
    "a string of Arabic digits": '"\u0661\u0662"',
    "a string of full-width digits": '"\uff11\uff12"',
    "a string with a dollar": '"$1"',
    "a string with a line feed": '"1\\n"',
    "a string with NUL": '"1\\u0000"',
    "a string zero": '"0.00"',
}
BAD |= {f"amount {name}": _bad(order(amount=text), "/amount") for name, text in _BAD_MONEY.items()}
BAD |= {f"price {name}": _bad(order(price=text), "/items/0/price") for name, text in _BAD_MONEY.items()}
BAD |= {
    "yen with digits": _bad(order(amount="1.5", price="100", currency='"JPY"'), "/amount"),
    "dinar with four digits": _bad(
        order(amount="1.0001", price="1.0001", currency='"KWD"'), "/amount", "/items/0/price"
    ),
    "amount 007": _bad(order(amount="007"), ""),
    "amount .5": _bad(order(amount=".5"), ""),
    "amount 0x10": _bad(order(amount="0x10"), ""),
}
