"""What a redrive publishes, and what it refuses: hostile headers choose neither the topic nor the tries."""

from datetime import UTC, datetime

import pytest

from orderstream.dead_letters import runner
from orderstream.dead_letters.bytes_reader import Wanted
from orderstream.dead_letters.reader import StoredLetter
from orderstream.dead_letters.redrive import SOURCES, TRIES_KEPT, number, redriven, tries_of
from orderstream.kafka.envelope import Headers

NOTES = {"topic": "order.created.v1", "reason": "FAILED"}


def _letter(notes: dict[str, str], headers: Headers) -> StoredLetter:
    return StoredLetter("payment-worker", 2, 17, datetime(2026, 1, 1, tzinfo=UTC), b"k", b"v", headers, notes)


def test_a_redrive_keeps_the_record_and_says_where_it_comes_from() -> None:
    headers: Headers = [("x", b"1"), ("x", None), ("redriven-from", b"payment-worker/2@9"), ("redrive-job", b"3")]
    record = redriven(_letter(NOTES, headers), 4)
    assert (record.topic, record.key, record.value) == ("order.created.v1", b"k", b"v")
    assert record.headers == [
        ("x", b"1"),
        ("x", None),
        ("redriven-from", b"payment-worker/2@9"),
        ("redriven-from", b"payment-worker/2@17"),
        ("redrive-job", b"4"),
    ]


def test_a_record_keeps_a_limited_number_of_tries() -> None:
    headers: Headers = [("redriven-from", b"payment-worker/0@%d" % number) for number in range(50)]
    record = redriven(_letter(NOTES, headers), 1)
    origins = [value for name, value in record.headers if name == "redriven-from"]
    assert len(origins) == TRIES_KEPT
    assert origins[-2:] == [b"payment-worker/0@49", b"payment-worker/2@17"]


@pytest.mark.parametrize(
    "notes",
    [
        {},
        {"topic": "payments.v1"},
        {"topic": "payment.failed.v1"},
        {"topic": "payment-worker.dlq.v1"},
        NOTES | {"cut-from": "9"},
    ],
)
def test_a_letter_of_a_foreign_topic_or_a_cut_one_is_refused(notes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"does not consume|too large"):
        redriven(_letter(notes, []), 1)


def test_letters_go_only_into_topics_that_their_service_consumes() -> None:
    assert SOURCES["payment-worker"] == ("order.created.v1", "order.aborted.v1")
    assert all(not topic.endswith(".dlq.v1") for topics in SOURCES.values() for topic in topics)


@pytest.mark.parametrize(
    ("origin", "job", "found"),
    [
        (b"payment-worker/2@17", b"5", ("payment-worker/2@17", 5)),
        (b"other/2@17", b"-5", (None, None)),
        (b"payment-worker/x@17", b"9" * 40, (None, None)),
        (b"\xff" * 10_000, b"\xff", (None, None)),
        (None, None, (None, None)),
    ],
)
def test_forged_origins_count_as_tries_without_a_letter(
    origin: bytes | None, job: bytes | None, found: tuple[str | None, int | None]
) -> None:
    assert tries_of(_letter(NOTES, [("redriven-from", origin), ("redrive-job", job)])) == (1, *found)


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("9223372036854775807", 2**63 - 1), ("9223372036854775808", None), ("٣", None)]
)
def test_a_number_of_a_header_fits_into_its_column(text: str, value: int | None) -> None:
    assert number(text) == value


def test_a_batch_has_a_limited_number_of_bytes() -> None:
    sizes = [runner.BATCH_BYTES + 1, 10, runner.BATCH_BYTES - 10, 10]
    letters = [Wanted(n, "s", 0, n, None, size, None, None) for n, size in enumerate(sizes)]
    assert runner._up_to_bytes(letters) == letters[:1]
    assert runner._up_to_bytes(letters[1:]) == letters[1:3]
    assert runner._up_to_bytes([]) == []
