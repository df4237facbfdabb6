"""The search of the log files: whole words, bounded, with any content."""

import json
from pathlib import Path

import pytest

from orderstream.console.orders import log_lines
from orderstream.console.orders.log_lines import LINES_MAX, find_lines
from tests.support.samples import ORDER_ID

TRACE = "0af7651916cd43dd8448eb211c80319c"


def line(number: int = 0, **fields: object) -> str:
    stamp = f"2026-01-02T03:04:05.{number:06}Z"
    return json.dumps({"timestamp": stamp, "level": "warning", "service": "order-service", "event": "e", **fields})


def write(folder: Path, name: str, *lines: str) -> None:
    (folder / name).write_text("".join(text + "\n" for text in lines), encoding="utf-8")


def test_lines_of_the_order_or_its_trace_are_found_in_all_files_by_time(tmp_path: Path) -> None:
    write(tmp_path, "b.log", line(2, order_id=ORDER_ID, detail=3), line(9, order_id="other"))
    write(tmp_path, "a.log", line(3, trace_id=TRACE), "not JSON " + ORDER_ID, json.dumps([ORDER_ID]))
    write(tmp_path, "c.log.1", line(4, order_id=ORDER_ID))
    found = find_lines(tmp_path, {ORDER_ID, TRACE})
    assert [(shown.file, shown.at.microsecond) for shown in found.lines] == [("b.log", 2), ("a.log", 3)]
    assert found.lines[0].fields == {"order_id": ORDER_ID, "detail": "3"}
    assert found.lines[1].trace_id == TRACE
    assert found.is_available


def test_only_whole_words_match(tmp_path: Path) -> None:
    write(tmp_path, "a.log", line(detail=f"x{TRACE}"), line(detail=f"{TRACE}0"), line(detail=f"{ORDER_ID}-1"))
    assert find_lines(tmp_path, {ORDER_ID, TRACE}).lines == []


def test_a_line_with_both_words_is_shown_once(tmp_path: Path) -> None:
    write(tmp_path, "a.log", line(order_id=ORDER_ID, trace_id=TRACE), line(1, order_id=ORDER_ID))
    assert len(find_lines(tmp_path, {ORDER_ID, TRACE}).lines) == 2


def test_the_newest_lines_are_returned(tmp_path: Path) -> None:
    write(tmp_path, "a.log", *(line(number, order_id=ORDER_ID) for number in range(LINES_MAX + 5)))
    found = find_lines(tmp_path, {ORDER_ID})
    assert (len(found.lines), found.left_out, found.lines[0].at.microsecond) == (LINES_MAX, 5, 5)


def test_only_the_end_of_a_large_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "FILE_MAX_BYTES", 400)
    write(tmp_path, "a.log", *(line(number, order_id=ORDER_ID) for number in range(20)))
    found = find_lines(tmp_path, {ORDER_ID})
    assert 0 < len(found.lines) < 4
    assert found.cut_files == ["a.log"]


def test_hostile_fields_are_text_and_are_cut(tmp_path: Path) -> None:
    fields: dict[str, object] = {"service": "<b>", "trace_id": "<i>", "error": "x" * 5_000, "deep": {"a": [1]}}
    write(tmp_path, "a.log", line(0, order_id=ORDER_ID, **fields), '{"timestamp":"never","x":"' + ORDER_ID + '"}')
    (found,) = find_lines(tmp_path, {ORDER_ID}).lines
    assert (found.service, found.trace_id) == ("a", None)
    assert found.fields["error"].endswith("… 4,000 more characters")
    assert found.fields["deep"] == '{"a":[1]}'
