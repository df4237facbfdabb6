"""Types of the command line's arguments."""

import click

from orderstream.domain.limits import SKU_MAX_CHARACTERS, UNITS_MAX


class Sku(click.ParamType[str]):
    """A SKU that the API accepts."""

    name = "sku"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the SKU. Fails if no order can name it."""
        if not 1 <= len(value) <= SKU_MAX_CHARACTERS:
            self.fail(f"a SKU has 1 to {SKU_MAX_CHARACTERS} characters", param, ctx)
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("a SKU is text in UTF-8", param, ctx)
        return value


class Units(click.ParamType[int]):
    """A number of units of one SKU that the schema accepts."""

    name = "units"

    def __init__(self, *, negative: bool) -> None:
        self._negative = negative

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number. Fails if no SKU can have it."""
        limits: click.ParamType[int] = click.IntRange(-UNITS_MAX if self._negative else 0, UNITS_MAX)
        return limits.convert(value, param, ctx)
