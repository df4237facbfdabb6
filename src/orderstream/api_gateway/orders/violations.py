"""Finds all violations in a body, each with its JSON pointer. This is slow, so only bodies that need it come here.

Decision 0035 says why these checks are written by hand.
"""

import functools
import itertools
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from msgspec import Struct

from orderstream.api_gateway.orders.quantity import QuantityError, quantity
from orderstream.domain.limits import ITEMS_MAX, QTY_MAX, SKU_MAX_CHARACTERS, USER_ID_MAX_CHARACTERS
from orderstream.domain.money import MINOR_DIGITS, MoneyError, in_currency, parse
from orderstream.http_server.problems import Violation

VIOLATIONS_MAX = 5_000
MARKS_MAX = 20_000
"""Commas and opening brackets outside strings. They limit the values in a body. The largest order has 5,000 of them."""
POINTER_MAX_CHARACTERS = 500
POINTERS_MAX_CHARACTERS = 250_000
"""The total length of all pointers. It limits the size of the response."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_MALFORMED = (b"\\ud", b"\\uD", b"NaN", b"Infinity")
_NOT_IN_JSON = ("NaN", "Infinity", "-Infinity")
_MISSING = object()


class _Number(str):
    """A JSON number as it was written, of any length."""

    __slots__ = ()


class _Object(dict[str, Any]):
    """A JSON object, with the names that occur more than once."""

    repeated: tuple[str, ...] = ()


class _Line(Struct):
    """The price and the total quantity of the lines with one SKU so far."""

    price: Decimal
    qty: int = 0


def violations(body: bytes) -> list[Violation]:
    """Return the violations of a body that should be an order: first of JSON itself, then of the members, in order.

    The event loop serves no other request meanwhile, so a body with far more values than an order is not parsed.
    """
    if _has_too_many_marks(body):
        return [Violation("", f"has more than {MARKS_MAX} commas and opening brackets outside its strings")]
    repeating: list[_Object] = []
    try:
        parsed = json.loads(
            body.decode(),
            object_pairs_hook=functools.partial(_object, repeating),
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_Number,
        )
    except UnicodeDecodeError as error:
        return [Violation("", f"is not valid UTF-8 (byte {error.start})")]
    except json.JSONDecodeError as error:
        return [Violation("", f"is not valid JSON: {error.msg} (character {error.pos})")]
    except RecursionError:
        return [Violation("", "is nested too deeply")]
    if not isinstance(parsed, _Object):
        return [Violation("", "must be an object")]
    # If the body contains none of these marks, none of its values is malformed, and they need not be checked.
    malformed = _malformed(parsed) if repeating or any(mark in body for mark in _MALFORMED) else ()
    return _bounded(itertools.chain(malformed, _order(parsed)))


def _has_too_many_marks(body: bytes) -> bool:
    """Return whether a body has too many values to be parsed. The cost is linear in the size of the body."""
    if _marks(body) <= MARKS_MAX:
        return False
    if body.count(b'"') > 4 * MARKS_MAX:  # A value and its name have at most two quotes each.
        return True
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return _marks(b"".join(unescaped.split(b'"')[::2])) > MARKS_MAX


def _marks(body: bytes) -> int:
    return sum(map(body.count, (b",", b"[", b"{")))


def _bounded(found: Iterator[Violation]) -> list[Violation]:
    """Return the first violations, within the limits of their number and of their pointers."""
    violations: list[Violation] = []
    characters = 0
    for violation in itertools.islice(found, VIOLATIONS_MAX):
        pointer = _printable(violation.pointer)[:POINTER_MAX_CHARACTERS]
        characters += len(pointer)
        if characters > POINTERS_MAX_CHARACTERS:
            break
        violations.append(Violation(pointer, violation.detail))
    return violations


def _object(repeating: list[_Object], pairs: list[tuple[str, Any]]) -> _Object:
    members = _Object(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        members.repeated = tuple({name: None for name, _ in pairs if name in seen or seen.add(name)})  # type: ignore[func-returns-value]
        repeating.append(members)
    return members


def _printable(pointer: str) -> str:
    return pointer.encode(errors="replace").decode()


def _join(pointer: str, name: str | int) -> str:
    return f"{pointer}/{str(name).replace('~', '~0').replace('/', '~1')}"


def _malformed(root: _Object) -> Iterator[Violation]:
    """Find repeated names, lone surrogates and invalid numbers at any depth, also in members that are ignored.

    Pointers are built only for violations and for containers, because a body may have many values.
    """
    containers: list[tuple[str, _Object | list[Any]]] = [("", root)]
    while containers:
        pointer, container = containers.pop()
        if isinstance(container, _Object):
            yield from _names(pointer, container)
        for key, value in container.items() if isinstance(container, _Object) else enumerate(container):
            if isinstance(value, _Object | list):
                containers.append((_join(pointer, key)[:POINTER_MAX_CHARACTERS], value))
            elif isinstance(value, str) and (detail := _malformation(value)):
                yield Violation(_join(pointer, key), detail)


def _names(pointer: str, members: _Object) -> Iterator[Violation]:
    for name in members.repeated:
        yield Violation(_join(pointer, name), "occurs more than once in its object")
    for name in members:
        if _SURROGATE.search(name):
            yield Violation(_join(pointer, name), "has a name with a lone surrogate")


def _malformation(value: str) -> str | None:
    if isinstance(value, _Number):
        return f"is {value}, which is not valid JSON" if value in _NOT_IN_JSON else None
    return "has a lone surrogate" if _SURROGATE.search(value) else None


def _order(order: _Object) -> Iterator[Violation]:
    currency = order.get("currency", _MISSING)
    known = currency if isinstance(currency, str) and currency in MINOR_DIGITS else None
    yield from _text("/userId", order.get("userId", _MISSING), USER_ID_MAX_CHARACTERS)
    yield from _items(order.get("items", _MISSING), known)
    yield from _money("/amount", order.get("amount", _MISSING), known)
    if known is None:
        yield Violation("/currency", _wrong(currency, "must be the code of an active currency, such as USD"))


def _items(items: Any, currency: str | None) -> Iterator[Violation]:
    if not isinstance(items, list):
        yield Violation("/items", _wrong(items, "must be an array"))
        return
    if not 1 <= len(items) <= ITEMS_MAX:
        yield Violation("/items", f"must have 1 to {ITEMS_MAX} items")
        return
    lines: dict[str, _Line] = {}
    for index, item in enumerate(items):
        pointer = f"/items/{index}"
        if not isinstance(item, _Object):
            yield Violation(pointer, "must be an object")
            continue
        sku, qty, price = (item.get(name, _MISSING) for name in ("sku", "qty", "price"))
        found = [
            *_text(f"{pointer}/sku", sku, SKU_MAX_CHARACTERS),
            *_qty(f"{pointer}/qty", qty),
            *_money(f"{pointer}/price", price, currency),
        ]
        yield from found
        if not found:
            yield from _merge(pointer, lines.setdefault(sku, _Line(_amount(price))), _amount(price), quantity(qty))


def _merge(pointer: str, line: _Line, price: Decimal, qty: int) -> Iterator[Violation]:
    if line.price != price:
        yield Violation(f"{pointer}/price", "differs from the price of the same SKU in another line")
    line.qty += qty
    if line.qty > QTY_MAX:
        yield Violation(f"{pointer}/qty", f"adds up to more than {QTY_MAX} with other lines of the same SKU")


def _text(pointer: str, value: Any, characters_max: int) -> Iterator[Violation]:
    if not isinstance(value, str) or isinstance(value, _Number):
        yield Violation(pointer, _wrong(value, "must be a string"))
    elif not 1 <= len(value) <= characters_max:
        yield Violation(pointer, f"must have 1 to {characters_max} characters")
    elif "\x00" in value:
        yield Violation(pointer, "must not contain NUL")


def _qty(pointer: str, value: Any) -> Iterator[Violation]:
    if not isinstance(value, _Number):
        yield Violation(pointer, _wrong(value, "must be an integer"))
        return
    try:
        quantity(value)
    except QuantityError as error:
        yield Violation(pointer, str(error))


def _money(pointer: str, value: Any, currency: str | None) -> Iterator[Violation]:
    if not isinstance(value, str):
        yield Violation(pointer, _wrong(value, "must be a number or a string"))
        return
    try:
        amount = _amount(value)
        if currency is not None:
            in_currency(amount, currency)
    except MoneyError as error:
        yield Violation(pointer, str(error))


def _amount(value: str) -> Decimal:
    return parse(value, quoted=not isinstance(value, _Number))


def _wrong(value: Any, expected: str) -> str:
    return "is required" if value is _MISSING else expected
