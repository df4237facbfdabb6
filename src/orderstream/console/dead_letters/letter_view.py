"""Shows one dead letter: its bytes in bounded parts, its headers, its row in the index, and its history."""

import base64
from datetime import datetime

from confluent_kafka import KafkaException
from msgspec import Struct

from orderstream.dead_letters.advice import advice_for
from orderstream.dead_letters.entries import entry_of
from orderstream.dead_letters.index import Letter, Past, Place
from orderstream.dead_letters.printable import printable
from orderstream.dead_letters.reader import StoredLetter, as_text, letter_at
from orderstream.dead_letters.redrive import SOURCES
from orderstream.kafka.errors import UNKNOWN_TOPIC, KafkaRefusedError
from orderstream.settings import Settings

SHOWN_BYTES = 64 * 1024
"""Bytes of a key, a value or a header that an answer has. `all=true` has them all."""
HEX_BYTES = 1_024
HEADERS_MAX = 200


class Content(Struct, frozen=True, rename="camel"):
    """Bytes in three forms. `text` has escapes for bytes that are not UTF-8. `cut_bytes` are not shown."""

    size: int
    text: str
    is_text: bool
    base64: str
    hex: str
    cut_bytes: int


class Header(Struct, frozen=True, rename="camel"):
    """A header of the record. A header without a value has None."""

    name: str
    value: Content | None


class Bytes(Struct, frozen=True, rename="camel"):
    """The record as it is in its dead-letter topic. `notes` are what the worker wrote about it."""

    key: Content | None
    value: Content | None
    headers: tuple[Header, ...]
    headers_left_out: int
    notes: dict[str, str]


class LetterView(Struct, frozen=True, rename="camel"):
    """One dead letter. `bytes` is None if Kafka did not answer; `problem` then says why."""

    service: str
    partition: int
    offset: int
    at: datetime | None
    row: Letter | None
    bytes: Bytes | None
    problem: str | None
    advice: str
    may_redrive: bool
    order: str | None
    history: tuple[Past, ...]


def view(
    settings: Settings,
    place: Place,
    row: Letter | None,
    history: tuple[Past, ...],
    shown_bytes: int | None,
    *,
    is_kafka_silent: bool,
) -> LetterView | None:
    """Return a letter with its row in the index; None if neither the index nor Kafka has it.

    If Kafka is silent, its bytes are left out at once: a wait would hold a thread that other pages need.
    """
    if not is_possible(place):
        return None
    found, problem = (None, "Kafka does not answer.") if is_kafka_silent else _from_kafka(settings, place)
    if row is None and found is None and problem is None:
        return None
    entry = entry_of(found, "") if found is not None else None
    known = row or entry
    reason = known.reason if known else ""
    topic = row.topic if row else entry.source_topic if entry else ""
    return LetterView(
        place.service,
        place.partition,
        place.offset,
        known.at if known else None,
        row,
        None if found is None else _bytes(found, shown_bytes),
        problem,
        advice_for(reason),
        known is not None and not known.cut and topic in SOURCES[place.service],
        known.order_id if known else None,
        history,
    )


def is_possible(place: Place) -> bool:
    """Say whether Kafka may have a letter at a position."""
    return place.service in SOURCES and 0 <= place.partition < 2**31 and 0 <= place.offset < 2**63


def _from_kafka(settings: Settings, place: Place) -> tuple[StoredLetter | None, str | None]:
    """Return the record, or why it cannot be read at the moment."""
    try:
        return letter_at(settings, place.service, place.partition, place.offset), None
    except (KafkaException, KafkaRefusedError) as error:
        if isinstance(error, KafkaException) and error.args[0].code() in UNKNOWN_TOPIC:
            return None, None
        return None, f"Kafka does not answer: {str(error)[:300]}"


def _bytes(letter: StoredLetter, shown_bytes: int | None) -> Bytes:
    headers = tuple(
        Header(printable(name)[:1_000], None if value is None else content_of(value, shown_bytes))
        for name, value in letter.headers[:HEADERS_MAX]
    )
    return Bytes(
        None if letter.key is None else content_of(letter.key, shown_bytes),
        None if letter.value is None else content_of(letter.value, shown_bytes),
        headers,
        max(0, len(letter.headers) - HEADERS_MAX),
        {printable(name)[:100]: printable(text)[:2_000] for name, text in letter.notes.items()},
    )


def content_of(value: bytes, shown_bytes: int | None) -> Content:
    """Return bytes as text, base64 and hex, at most `shown_bytes` of them; all of them if it is None."""
    shown = value if shown_bytes is None else value[:shown_bytes]
    try:
        value.decode()
        is_text = True
    except UnicodeDecodeError:
        is_text = False
    return Content(
        len(value),
        printable(as_text(shown)),
        is_text,
        base64.b64encode(shown).decode("ascii"),
        shown[:HEX_BYTES].hex(" "),
        len(value) - len(shown),
    )
