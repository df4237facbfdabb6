"""Quantities: whole numbers in any JSON notation. 1, 1.0 and 10e-1 are the same integer (JSON Schema, 6.1.1)."""

import re
from decimal import Decimal

from orderstream.domain.limits import NUMBER_MAX_CHARACTERS, QTY_MAX, QTY_MIN

_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?0*[0-9]{1,3})?", re.ASCII)
_NOT_IN_RANGE = f"must be from {QTY_MIN} to {QTY_MAX}"


class QuantityError(ValueError):
    """The text is not a quantity. The message tells the client why."""


def quantity(number: str) -> int:
    """Read a JSON number exactly. Raises QuantityError if it is not whole, not in range, or too long."""
    if len(number) > NUMBER_MAX_CHARACTERS:
        too_long = f"must have at most {NUMBER_MAX_CHARACTERS} characters"
        raise QuantityError(_NOT_IN_RANGE if _INTEGER.fullmatch(number) else too_long)
    if not _NUMBER.fullmatch(number):
        raise QuantityError("must be an integer")
    exact = Decimal(number)
    if exact.adjusted() >= len(str(QTY_MAX)):
        raise QuantityError(_NOT_IN_RANGE)
    if exact != exact.to_integral_value():
        raise QuantityError("must be an integer")
    if not QTY_MIN <= exact <= QTY_MAX:
        raise QuantityError(_NOT_IN_RANGE)
    return int(exact)
