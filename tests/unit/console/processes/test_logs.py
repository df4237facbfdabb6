"""A log is read piece by piece: every line once, filters, limits, hostile lines, and a log that began again."""

import json
from pathlib import Path

import pytest

from orderstream.console.processes import logs
from orderstream.console.processes.logs import log_part

ORDER = "01980000-0000-7000-8000-000000000001"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with lines of a service, of Postgres, of Kafka, and without an end."""
    lines = [
        json.dumps({"level": "info", "event": "started"}),
        json.dumps({"level": "warning", "event": "provider_failed", "order_id": ORDER, "trace_id": TRACE}),
        "2026-11-26 10:00:00 UTC [1] ERROR:  relation of " + ORDER + " is gone",
        "[2026-11-26 10:00:00,000] WARN Disk is full (kafka.server)",
        '{"level": ["x"], "order_id": 7, "trace_id": "no"',
        "plain, password=secret and ü",
    ]
    path = tmp_path / "x.log"
    path.write_text("\n".join(lines) + "\nnot yet whole")
    return path


def test_every_line_is_read_once_from_offset_to_offset(log: Path) -> None:
    offset, texts = 0, []
    while (part := log_part(log, offset, limit=1)).lines:
        texts += [line.text for line in part.lines]
        assert part.lines[0].offset == offset
        offset = part.next
    assert texts[-1] == "plain, password=*** and ü"
    assert len(texts) == 6
    with log.open("a") as file:
        file.write(" now\n")
    assert [line.text for line in log_part(log, offset).lines] == ["not yet whole now"]


def test_lines_are_found_by_level_and_text_with_their_order_and_trace(log: Path) -> None:
    warnings = log_part(log, level="warning").lines
    assert [line.level for line in warnings] == ["warning", "error", "warning"]
    assert [line.order_id for line in warnings] == [ORDER, ORDER, None]
    assert [line.trace_id for line in warnings] == [TRACE, None, None]
    assert [line.level for line in log_part(log, text="DISK").lines] == ["warning"]
    assert log_part(log, limit=2).lines == log_part(log).lines[-2:], "without an offset, the last lines are shown"


def test_a_read_is_limited_and_begins_with_a_whole_line(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "READ_MAX_BYTES", 100)
    log.write_text("".join(f"line {number:03}\n" for number in range(100)))
    assert [line.text for line in log_part(log).lines] == [f"line {number:03}" for number in range(89, 100)]
    assert log_part(log, 4).lines[0].text == "line 001", "an offset inside of a line begins with the next line"
    part = log_part(log, 0)
    assert (len(part.lines), part.next, part.size) == (11, 99, 900)
    assert log_part(log, part.next).lines[0].text == "line 011"


def test_long_lines_are_cut_and_a_new_log_is_read_from_its_start(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LINE_MAX_CHARACTERS", 10)
    line = log_part(log, 0, limit=1).lines[0]
    assert (len(line.text), line.more) == (10, len('{"level": "info", "event": "started"}') - 10)
    log.write_text("fresh\n")
    part = log_part(log, 5_000)
    assert ([line.text for line in part.lines], part.is_from_start) == (["fresh"], True)
    monkeypatch.setattr(logs, "READ_MAX_BYTES", 50)
    log.write_text("x" * 200)
    part = log_part(log, 0)
    assert (part.next, len(part.lines)) == (50, 1), "a line without an end does not stop the reader"
    assert log_part(log.with_name("missing.log")) == logs.LogPart([], 0, 0, 0)
