"""The log files are limited: one earlier log is kept, and a log that grows too large is emptied."""

from pathlib import Path

import pytest

from orderstream.local.processes import logs


def test_rotate_keeps_one_earlier_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    for text in ("first", "second"):
        log.write_text(text)
        logs.rotate(log)
    assert not log.exists()
    assert (tmp_path / "a.log.1").read_text() == "second"


def test_a_log_over_its_limit_is_copied_and_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_LIMIT_BYTES", 4)
    log = tmp_path / "a.log"
    log.write_text("1234")
    logs.limit_size(log)
    assert log.read_text() == "1234"
    log.write_text("12345")
    logs.limit_size(log)
    assert log.read_text() == ""
    assert (tmp_path / "a.log.1").read_text() == "12345"
