"""Errors that differ only in ids, numbers and quoted values are one group."""

import pytest

from orderstream.dead_letters.error_groups import GROUP_MAX_CHARACTERS, group_of


@pytest.mark.parametrize(
    ("error", "group"),
    [
        ("JSON is malformed: invalid character (byte 4)", "JSON is malformed: invalid character (byte N)"),
        ("type is 'order.eaten', expected order.created", "type is '…', expected order.created"),
        ("order 0a1B2c3d-0000-7000-8000-00000000000f is unknown", "order ID is unknown"),
        (
            'violates "inventory_reserved_not_negative"\nDETAIL: (SKU-1, 6, -1)',
            'violates "inventory_reserved_not_negative"',
        ),
        ("utf8 in v1 and p2_x at 1,204.5 of 7", "utf8 in v1 and p2_x at N of N"),
        ("it's 'a' and 'b\\'c'", "it's '…' and '…'"),
        ("", ""),
    ],
)
def test_changing_parts_are_left_out(error: str, group: str) -> None:
    assert group_of(error) == group


def test_a_group_has_a_limited_number_of_characters() -> None:
    group = group_of("x" * 1_000_000)
    assert len(group) == GROUP_MAX_CHARACTERS
    assert group.endswith("…")


@pytest.mark.parametrize("error", ["'" * 100_000, "1" * 1_000_000, "\x00\x1b[2J\u202e", "'\\" * 50_000])
def test_hostile_errors_are_grouped_at_once_and_printable(error: str) -> None:
    assert group_of(error[:1_000]).isprintable()
