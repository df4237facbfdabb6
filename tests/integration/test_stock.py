"""The stock commands on PostgreSQL add and remove units while the worker reserves and releases them (P3)."""

import pytest
from click.testing import CliRunner

from orderstream.cli import main
from orderstream.domain.limits import UNITS_MAX
from orderstream.inventory_worker.stock_commands import (
    TooFewError,
    TooManyError,
    UnknownSkuError,
    add_available,
    listing,
    set_available,
)
from orderstream.postgres.connect import Connection

BEYOND_INT = 2**31


def test_units_are_set_added_and_removed(connection: Connection, postgres_url: str) -> None:
    set_available(postgres_url, "A", 5)
    connection.execute("UPDATE inventory SET reserved = 3 WHERE sku = 'A'")
    add_available(postgres_url, "A", 2)
    add_available(postgres_url, "A", -7)
    add_available(postgres_url, "B", 4)
    set_available(postgres_url, "B", 1)
    assert listing(postgres_url) == [("A", 0, 3), ("B", 1, 0)]


def test_no_more_units_are_removed_than_are_available(postgres_url: str) -> None:
    add_available(postgres_url, "A", 2)
    with pytest.raises(TooFewError, match="fewer than 3 units of A"):
        add_available(postgres_url, "A", -3)
    with pytest.raises(UnknownSkuError, match="GONE"):
        add_available(postgres_url, "GONE", -1)
    assert listing(postgres_url) == [("A", 2, 0)]


def test_units_may_be_more_than_an_int(postgres_url: str) -> None:
    set_available(postgres_url, "A", BEYOND_INT)
    add_available(postgres_url, "A", BEYOND_INT)
    add_available(postgres_url, "A", -1)
    assert listing(postgres_url) == [("A", 2 * BEYOND_INT - 1, 0)]


def test_available_and_reserved_units_together_are_limited(connection: Connection, postgres_url: str) -> None:
    set_available(postgres_url, "A", UNITS_MAX)
    with pytest.raises(TooManyError, match=f"A may have {UNITS_MAX} units"):
        add_available(postgres_url, "A", 1)
    connection.execute("UPDATE inventory SET available = 0, reserved = 1")
    with pytest.raises(TooManyError):
        set_available(postgres_url, "A", UNITS_MAX)
    with pytest.raises(TooManyError):
        add_available(postgres_url, "A", UNITS_MAX)
    assert listing(postgres_url) == [("A", 0, 1)]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["add", "A", str(UNITS_MAX)], f"A may have {UNITS_MAX} units, those that are reserved included"),
        (["add", "A", "-6"], "fewer than 6 units of A are available"),
        (["add", "GONE", "-1"], "there is no stock of GONE"),
    ],
)
def test_a_command_prints_in_one_line_why_it_changed_nothing(postgres_url: str, words: list[str], error: str) -> None:
    set_available(postgres_url, "A", 5)
    result = CliRunner().invoke(main, ["stock", *words], env={"POSTGRES_URL": postgres_url})
    assert (result.exit_code, result.stderr) == (1, f"Error: {error}\n")
    assert listing(postgres_url) == [("A", 5, 0)]


def test_the_list_has_columns_for_the_largest_number(postgres_url: str) -> None:
    set_available(postgres_url, "A", UNITS_MAX)
    result = CliRunner().invoke(main, ["stock", "list"], env={"POSTGRES_URL": postgres_url})
    head, line = result.stdout.splitlines()
    assert len(head) == len(line)
    assert line.split() == ["A", str(UNITS_MAX), "0"]
