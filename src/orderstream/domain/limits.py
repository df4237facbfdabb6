"""The limits of an order and of the stock. The API, the events, the command line and the schema of Postgres share them.

An event may exceed them: a reader accepts what a newer version writes (decision 0029).
"""

ITEMS_MAX = 1_000
"""Lines of one order."""
USER_ID_MAX_CHARACTERS = 128
SKU_MAX_CHARACTERS = 64
QTY_MIN = 1
QTY_MAX = 1_000_000
"""Units of one SKU in one order."""
NUMBER_MAX_CHARACTERS = 64
"""Characters of a quantity or an amount in JSON."""
MONEY_INTEGER_DIGITS_MAX = 12
"""Digits of an amount before the point."""
UNITS_MAX = 10**15
"""Available and reserved units of one SKU together. Postgres has a CHECK for it. JSON numbers represent it exactly."""
