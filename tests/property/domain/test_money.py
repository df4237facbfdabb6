"""Every exact notation of an amount is parsed exactly, and any other text is refused with a reason."""

import json
import re
from contextlib import suppress
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from orderstream.domain.money import MINOR_DIGITS, MoneyError, in_currency, parse
from tests.support.strategies import CURRENCIES

NUMBERISH = st.text(alphabet="0123456789.eE+-", max_size=24)


@given(NUMBERISH | st.text(max_size=70) | st.floats().map(repr) | st.decimals().map(str), st.booleans())
def test_any_text_is_parsed_exactly_or_refused(text: str, quoted: bool) -> None:
    try:
        amount = parse(text, quoted=quoted)
    except MoneyError:
        return
    assert amount == Decimal(text)
    assert 0 < amount < 10**12
    assert text.isascii()
    assert json.loads(re.sub(r"^0+(?=\d)", "", text), parse_float=Decimal, parse_int=Decimal) == amount


@given(st.decimals(0, 999_999_999_999, allow_nan=False, places=4).filter(bool), CURRENCIES)
def test_in_currency_changes_only_the_notation(amount: Decimal, currency: str) -> None:
    digits = MINOR_DIGITS[currency]
    exact = amount == round(amount, digits)
    try:
        written = in_currency(amount, currency)
    except MoneyError:
        assert not exact
        return
    assert exact
    assert written == amount
    assert written.as_tuple().exponent == -digits
    assert parse(str(written), quoted=True) == amount


@given(st.text(max_size=24), CURRENCIES)
def test_parse_then_in_currency_raises_nothing_else(text: str, currency: str) -> None:
    with suppress(MoneyError):
        in_currency(parse(text, quoted=False), currency)
