"""Money: exact decimals, with as many digits after the point as the currency has. No amount is rounded."""

import re
from decimal import Decimal

from orderstream.domain.limits import MONEY_INTEGER_DIGITS_MAX, NUMBER_MAX_CHARACTERS

_BINARY_ERROR = Decimal("1e-12")
"""The largest relative error that a few operations in binary floating point cause."""
_PLAIN = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_NUMBER = re.compile(r"([0-9]+)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", re.ASCII)

# ISO 4217: the active currencies by the number of digits after the point.
_DIGITS: dict[int, str] = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW"
    " CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR"
    " ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV"
    " MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD"
    " SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
MINOR_DIGITS: dict[str, int] = {code: digits for digits, codes in _DIGITS.items() for code in codes.split()}
_UNITS: dict[str, Decimal] = {code: Decimal(1).scaleb(-digits) for code, digits in MINOR_DIGITS.items()}
"""The smallest amount of each currency."""


class MoneyError(ValueError):
    """The text is no valid amount of money. The message tells the client the reason."""


def parse(text: str, *, quoted: bool) -> Decimal:
    """Return an amount exactly as written.

    `quoted` says that the amount is in a JSON string, which must have plain decimal notation. A JSON number may have an
    exponent. Raises MoneyError for a text that is no positive amount of at most 12 digits before the point.
    """
    pattern = _PLAIN if quoted else _NUMBER
    if len(text) > NUMBER_MAX_CHARACTERS or not pattern.fullmatch(text):
        raise MoneyError("must be a decimal number such as 129.00")
    amount = Decimal(text)
    if amount <= 0:
        raise MoneyError("must be greater than 0")
    if amount.adjusted() >= MONEY_INTEGER_DIGITS_MAX:
        raise MoneyError(f"must have at most {MONEY_INTEGER_DIGITS_MAX} digits before the point")
    return amount


def in_currency(amount: Decimal, currency: str) -> Decimal:
    """Return a parsed amount with exactly the digits of a known currency: 129 USD becomes 129.00.

    Raises MoneyError if the amount, without trailing zeros, has more digits than the currency.
    """
    unit = _UNITS[currency]
    if amount.same_quantum(unit):
        return amount
    exact = amount.quantize(unit)
    if exact != amount:
        digits = MINOR_DIGITS[currency]
        raise MoneyError(f"must have at most {digits} digits after the point in {currency}; {_advice(amount, exact)}")
    return exact


def _advice(amount: Decimal, rounded: Decimal) -> str:
    """Return advice for an amount with too many digits, with their probable cause."""
    if rounded > 0 and abs(amount - rounded) <= amount * _BINARY_ERROR:
        return f'the rest comes from binary floating point: round it before you send it, or send the string "{rounded}"'
    return "round it before you send it"
