"""Amounts are parsed exactly or refused with the reason. No amount is rounded or becomes a float."""

from decimal import Decimal

import pytest

from orderstream.domain.money import MINOR_DIGITS, MoneyError, in_currency, parse


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("129", "129"),
        ("129.0", "129.0"),
        ("129.00", "129.00"),
        ("0.01", "0.01"),
        ("999999999999.99", "999999999999.99"),
        ("0000000000000001", "1"),
        ("0.1", "0.1"),
    ],
)
@pytest.mark.parametrize("quoted", [True, False])
def test_plain_numbers_are_read_as_written(text: str, amount: str, quoted: bool) -> None:
    parsed = parse(text, quoted=quoted)
    assert (parsed, parsed.as_tuple().exponent) == (Decimal(amount), Decimal(amount).as_tuple().exponent)


@pytest.mark.parametrize(("text", "amount"), [("1e2", "100"), ("1.29E+2", "129"), ("12900e-2", "129"), ("1E0", "1")])
def test_a_number_may_have_an_exponent_and_a_string_may_not(text: str, amount: str) -> None:
    assert parse(text, quoted=False) == Decimal(amount)
    with pytest.raises(MoneyError, match="decimal number"):
        parse(text, quoted=True)


@pytest.mark.parametrize(
    ("text", "currency", "advice"),
    [
        ("139.92999999999998", "USD", 'send the string "139.93"'),
        ("0.30000000000000004", "EUR", 'send the string "0.30"'),
        ("434.99999999999994", "JPY", 'send the string "435"'),
        ("1.1500000000000001", "KWD", 'send the string "1.150"'),
        ("123456789.12000001", "USD", 'send the string "123456789.12"'),
        ("1.005", "USD", "round it before you send it"),
        ("1.999", "USD", "round it before you send it"),
        ("7.5", "JPY", "round it before you send it"),
        ("1e-17", "USD", "round it before you send it"),
    ],
)
def test_an_amount_with_too_many_digits_is_refused_with_advice(text: str, currency: str, advice: str) -> None:
    with pytest.raises(MoneyError, match=f"digits after the point in {currency}; .*{advice}$"):
        in_currency(parse(text, quoted=False), currency)


@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " 1",
            "1 ",
            "1\n",
            "+1",
            "-1",
            "1_0",
            "1,0",
            ".5",
            "5.",
            "1.2.3",
            "0x10",
            "1e",
            "1e99999999999",
            "1e1000",
        ),
        *("1e1000", "NaN", "nan", "sNaN", "Infinity", "-Infinity", "inf", "null", "\x001", "1\x00", "9" * 65),
        *("\u0661\u0662", "\uff11\uff12", "1.\u0665"),
    ],
)
def test_anything_else_is_refused(text: str, quoted: bool) -> None:
    with pytest.raises(MoneyError, match="decimal number"):
        parse(text, quoted=quoted)


@pytest.mark.parametrize("text", ["0", "0.0", "0.00", "000", "0e5", "0e-999"])
def test_zero_is_refused(text: str) -> None:
    with pytest.raises(MoneyError, match="greater than 0"):
        parse(text, quoted=False)


@pytest.mark.parametrize("text", ["1000000000000", "1e12", "999999999999999.99", "1e400", "1e999", "10e11"])
def test_more_than_12_digits_before_the_point_are_refused(text: str) -> None:
    with pytest.raises(MoneyError, match="12 digits"):
        parse(text, quoted=False)


def test_12_digits_before_the_point_are_accepted() -> None:
    assert parse("999999999999", quoted=True) == Decimal(999_999_999_999)
    assert parse("9.99999999999e11", quoted=False) == Decimal(999_999_999_999)


@pytest.mark.parametrize(
    ("text", "currency", "written"),
    [
        ("129", "USD", "129.00"),
        ("129.0", "USD", "129.00"),
        ("129.000", "USD", "129.00"),
        ("1e2", "USD", "100.00"),
        ("1e11", "KWD", "100000000000.000"),
        ("1000", "JPY", "1000"),
        ("1000.00", "JPY", "1000"),
        ("1.5", "KWD", "1.500"),
        ("1.234", "KWD", "1.234"),
        ("1.2345", "CLF", "1.2345"),
        ("999999999999.9999", "UYW", "999999999999.9999"),
        ("5." + "0" * 60, "USD", "5.00"),
    ],
)
def test_the_digits_after_the_point_depend_on_the_currency(text: str, currency: str, written: str) -> None:
    assert f"{in_currency(parse(text, quoted=False), currency):f}" == written
    assert str(in_currency(parse(text, quoted=False), currency)) == written


@pytest.mark.parametrize(
    ("text", "currency"),
    [
        ("0.5", "JPY"),
        ("1.005", "USD"),
        ("1.2345", "KWD"),
        ("1.23456", "CLF"),
        ("1e-3", "USD"),
        ("1e-300", "USD"),
        ("0." + "0" * 60 + "1", "USD"),
        ("999999999999." + "9" * 51, "USD"),
    ],
)
def test_more_digits_than_the_currency_has_are_refused_not_rounded(text: str, currency: str) -> None:
    with pytest.raises(MoneyError, match=f"digits after the point in {currency}"):
        in_currency(parse(text, quoted=False), currency)


def test_different_notations_of_one_amount_are_equal() -> None:
    assert (
        len({str(in_currency(parse(text, quoted=False), "USD")) for text in ("129", "129.0", "1.29e2", "129.00")}) == 1
    )


def test_the_minor_digits_of_each_currency_are_those_of_iso_4217() -> None:
    assert {MINOR_DIGITS[code] for code in ("JPY", "KRW", "VND", "ISK", "CLP")} == {0}
    assert {MINOR_DIGITS[code] for code in ("USD", "EUR", "GBP", "CHF", "CNY")} == {2}
    assert {MINOR_DIGITS[code] for code in ("KWD", "BHD", "OMR", "TND", "JOD", "IQD", "LYD")} == {3}
    assert all(len(code) == 3 and code.isascii() and code.isupper() for code in MINOR_DIGITS)
    assert not {"XXX", "XTS", "XAU", "usd", ""} & MINOR_DIGITS.keys()
