"""A dead letter keeps the whole record and has the reason in its headers (P9)."""

import pytest

from orderstream.dead_letters.letter import LETTER_MAX_BYTES, DeadLetter, publication
from orderstream.kafka.envelope import Record
from tests.support.contracts import assert_dead_letter_headers


@pytest.mark.parametrize("key", [b"key", b"\xff\x00", None])
@pytest.mark.parametrize("value", [b"value", b"\xff\x00", b"", None])
def test_the_original_record_is_kept_unchanged(key: bytes | None, value: bytes | None) -> None:
    headers: list[tuple[str, bytes | None]] = [("traceparent", b"00-a"), ("odd", b"\xff"), ("empty", None)]
    letter = publication("a-worker", DeadLetter(Record("t.v1", 3, 42, key, value, headers), "NOT_JSON", "x" * 5_000, 0))
    assert (letter.topic, letter.key, letter.value) == ("a-worker.dlq.v1", key, value)
    assert letter.headers[:3] == headers
    notes = {name: str(text).encode() for name, text in letter.headers[3:]}
    assert assert_dead_letter_headers(notes) == {
        "dlq-topic": "t.v1",
        "dlq-partition": "3",
        "dlq-offset": "42",
        "dlq-reason": "NOT_JSON",
        "dlq-error": "x" * 1_000,
        "dlq-attempts": "0",
    }


def test_the_dead_letter_of_a_large_record_is_cut_and_has_the_original_size() -> None:
    record = Record("t.v1", 0, 0, b"k" * 5_000, b"v" * 3_000_000, [("large", b"h" * 1_000)])
    letter = publication("a-worker", DeadLetter(record, "NOT_JSON", "", 0))
    assert isinstance(letter.key, bytes)
    assert isinstance(letter.value, bytes)
    assert len(letter.key) + len(letter.value) == LETTER_MAX_BYTES
    assert dict(letter.headers)["dlq-cut-from"] == str(5_000 + 3_000_000 + len("large") + 1_000)
    assert "large" not in dict(letter.headers)
