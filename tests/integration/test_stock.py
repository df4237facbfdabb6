"""The stock commands on PostgreSQL add and remove units while the worker reserves and releases them (P3)."""

import pytest
from click.testing import CliRunner

from orderstream.cli import main
from orderstream.console.stock.read import stock_page
from orderstream.domain.limits import UNITS_MAX
from orderstream.inventory_worker.stock_commands import (
    Change,
    ChangedError,
    TooFewError,
    TooManyError,
    Units,
    UnknownSkuError,
    add_available,
    set_available,
)
from orderstream.postgres.connect import Connection, connect
from tests.support.locks import after_it_waits

BEYOND_INT = 2**31


def _listing(connection: Connection) -> list[tuple[str, int, int]]:
    """Return every SKU with its available and its reserved units."""
    return [(sku.sku, sku.available, sku.reserved) for sku in stock_page(connection).stock]


def test_units_are_set_added_and_removed(connection: Connection) -> None:
    set_available(connection, "A", 5)
    connection.execute("UPDATE inventory SET reserved = 3 WHERE sku = 'A'")
    add_available(connection, "A", 2)
    add_available(connection, "A", -7)
    add_available(connection, "B", 4)
    set_available(connection, "B", 1)
    assert _listing(connection) == [("A", 0, 3), ("B", 1, 0)]


def test_no_more_units_are_removed_than_are_available(connection: Connection) -> None:
    add_available(connection, "A", 2)
    with pytest.raises(TooFewError, match="fewer than 3 units of A"):
        add_available(connection, "A", -3)
    with pytest.raises(UnknownSkuError, match="GONE"):
        add_available(connection, "GONE", -1)
    assert _listing(connection) == [("A", 2, 0)]


def test_a_change_that_the_operator_has_not_seen_is_not_overwritten(connection: Connection) -> None:
    """Reservations move units and change nothing that the operator has to see."""
    assert set_available(connection, "A", 5, seen_stocked=None) == Change(None, Units(5, 0))
    with pytest.raises(ChangedError, match=r"A has 5 units \(5 available\) now"):
        set_available(connection, "A", 9, seen_stocked=None)
    connection.execute("UPDATE inventory SET available = 3, reserved = 2")
    assert set_available(connection, "A", 9, seen_stocked=5) == Change(Units(3, 2), Units(9, 2))
    with pytest.raises(ChangedError):
        set_available(connection, "A", 7, seen_stocked=5)
    with pytest.raises(ChangedError, match="NEW does not exist now"):
        set_available(connection, "NEW", 1, seen_stocked=4)
    assert _listing(connection) == [("A", 9, 2)]


def test_two_operators_who_create_the_same_sku_at_the_same_time(connection: Connection, postgres_url: str) -> None:
    with connect(postgres_url, "other") as other:
        other.execute("BEGIN")
        other.execute("INSERT INTO inventory VALUES ('A', 4, 0)")
        with connect(postgres_url, "observer") as observer:
            change = after_it_waits(
                observer, lambda: add_available(connection, "A", 3), lambda: other.execute("COMMIT")
            )
    assert change == Change(Units(4, 0), Units(7, 0))


def test_units_may_be_more_than_an_int(connection: Connection) -> None:
    set_available(connection, "A", BEYOND_INT)
    add_available(connection, "A", BEYOND_INT)
    add_available(connection, "A", -1)
    assert _listing(connection) == [("A", 2 * BEYOND_INT - 1, 0)]


def test_available_and_reserved_units_together_are_limited(connection: Connection) -> None:
    set_available(connection, "A", UNITS_MAX)
    with pytest.raises(TooManyError, match=f"A may have {UNITS_MAX} units"):
        add_available(connection, "A", 1)
    connection.execute("UPDATE inventory SET available = 0, reserved = 1")
    with pytest.raises(TooManyError):
        set_available(connection, "A", UNITS_MAX)
    with pytest.raises(TooManyError):
        add_available(connection, "A", UNITS_MAX)
    assert _listing(connection) == [("A", 0, 1)]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["add", "A", str(UNITS_MAX)], f"A may have {UNITS_MAX} units, those that are reserved included"),
        (["add", "A", "-6"], "fewer than 6 units of A are available"),
        (["add", "GONE", "-1"], "there is no stock of GONE"),
    ],
)
def test_a_command_prints_in_one_line_why_it_changed_nothing(
    connection: Connection, postgres_url: str, words: list[str], error: str
) -> None:
    set_available(connection, "A", 5)
    result = CliRunner().invoke(main, ["stock", *words], env={"POSTGRES_URL": postgres_url})
    assert (result.exit_code, result.stderr) == (1, f"Error: {error}\n")
    assert _listing(connection) == [("A", 5, 0)]


def test_the_list_has_columns_for_the_largest_number(connection: Connection, postgres_url: str) -> None:
    set_available(connection, "A", UNITS_MAX)
    result = CliRunner().invoke(main, ["stock", "list"], env={"POSTGRES_URL": postgres_url})
    head, line = result.stdout.splitlines()
    assert len(head) == len(line)
    assert line.split() == ["A", str(UNITS_MAX), "0"]


def test_the_commands_record_what_they_did_and_show_it(connection: Connection, postgres_url: str) -> None:
    run = CliRunner(env={"POSTGRES_URL": postgres_url})
    assert run.invoke(main, ["stock", "set", "A", "5", "--reason", "delivery"]).stdout == "A: 5 available (new)\n"
    assert run.invoke(main, ["stock", "add", "A", "-2"]).stdout == "A: -2 added, 3 available (before: 5)\n"
    refused = run.invoke(main, ["stock", "set", "A", "9", "--expected-stocked", "5"])
    assert (refused.exit_code, refused.stdout) == (1, "")
    lines = run.invoke(main, ["stock", "history", "A"]).stdout.splitlines()
    error = "A has 3 units (3 available) now: it changed after you read it"
    assert [line.split("  ")[2:] for line in lines] == [
        ["stock.set", f"available=9 expectedStocked=5 error={error}", "failed"],
        ["stock.add", "quantity=-2 reserved=0 availableAfter=3 availableBefore=5", "done"],
        ["stock.set", "available=5 reserved=0 availableAfter=5 availableBefore=None", "done", "delivery"],
    ]
    assert {line.split("  ")[1].rpartition(" ")[2] for line in lines} == {"(cli)"}


def test_the_list_is_searched_and_continued(connection: Connection, postgres_url: str) -> None:
    for sku in ("B-1", "a-1", "b-\x1b[2J\n2", "b-3"):
        set_available(connection, sku, 1)
    run = CliRunner(env={"POSTGRES_URL": postgres_url})

    def listed(*words: str) -> list[str]:
        return [line.split()[0] for line in run.invoke(main, ["stock", "list", *words]).stdout.splitlines()[1:]]

    assert listed() == ["B-1", "a-1", "b-\\x1b[2J\\n2", "b-3"]
    assert listed("--search", "b") == ["b-\\x1b[2J\\n2", "b-3"]
    assert listed("--search", "B-", "--part") == ["B-1", "b-\\x1b[2J\\n2", "b-3"]
    first = run.invoke(main, ["stock", "list", "-n", "3"])
    assert first.stderr == "There are more. Go on with: --after $'b-\\x1b[2J\\x0a2'\n"
    assert listed("--after", "b-\x1b[2J\n2") == ["b-3"]
