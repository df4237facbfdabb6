"""The index of dead letters follows their topics: filled once, also by two tailers, and after a topic is recreated."""

import os
from uuid import uuid4

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from orderstream.dead_letters import index, tailer
from orderstream.dead_letters.index import Filter, Place
from orderstream.kafka.topics import dead_letter_topic, ensure_topics
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.support.letters import SERVICE, SOURCE, Letters, delete_topics, with_prefix
from tests.support.topics import publish
from tests.support.waiting import wait_until


def test_letters_are_grouped_listed_and_found_by_their_filters(letters: Letters) -> None:
    letters.write(3, error="byte 4 of 'x'")
    letters.write(2, error="byte 99 of 'y'")
    letters.write(1, service="order-service", reason="UNKNOWN_ORDER", topic="payment.failed.v1", cut_from="5000000")
    letters.index(6)
    found = index.groups(letters.connection, Filter())
    assert [(g.service, g.reason, g.topic, g.error, g.count, g.open) for g in found.groups] == [
        ("order-service", "UNKNOWN_ORDER", "payment.failed.v1", "why", 1, 1),
        (SERVICE, "NOT_JSON", SOURCE, "byte N of '…'", 5, 5),
    ]
    (cut,) = index.letters(letters.connection, Filter(service="order-service"), 10).letters
    assert (cut.cut, cut.source_partition, cut.source_offset, cut.state) == (True, 0, 7, "open")
    for wanted, number in (
        (Filter(reason="NOT_JSON"), 5),
        (Filter(error="why"), 1),
        (Filter(topic=SOURCE, state="open"), 5),
        (Filter(state="redriven"), 0),
        (Filter(until=cut.at), 5),
        (Filter(order_id=str(uuid4())), 0),
    ):
        assert len(index.letters(letters.connection, wanted, 10).letters) == number, wanted


def test_a_list_is_read_in_pages_and_says_where_its_search_stopped(letters: Letters) -> None:
    letters.write(5)
    letters.index(5)
    first = index.letters(letters.connection, Filter(), 2)
    second = index.letters(letters.connection, Filter(), 2, first.next)
    last = index.letters(letters.connection, Filter(), 2, second.next)
    ids = [letter.id for page in (first, second, last) for letter in page.letters]
    assert ids == sorted(ids, reverse=True)
    assert (len(ids), last.next, last.stopped) == (5, None, False)


def test_a_search_looks_at_a_bounded_number_of_letters(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    letters.write(1, reason="NO_KEY")
    letters.index(1)
    letters.write(3)
    letters.index(4)
    monkeypatch.setattr(index, "SCAN_MAX", 2)
    page = index.letters(letters.connection, Filter(reason="NO_KEY"), 10)
    assert (page.letters, page.stopped) == ((), True)
    assert index.groups(letters.connection, Filter()).stopped
    following = index.letters(letters.connection, Filter(reason="NO_KEY"), 10, page.next)
    assert (len(following.letters), following.stopped) == (1, False)


def test_two_tailers_add_each_letter_once(letters: Letters) -> None:
    letters.write(20)
    with letters.tailing() as first, letters.tailing() as second:
        wait_until(lambda: first.read_available() + second.read_available() == 0 and letters.count() == 20, 20, "all")
        letters.write(5)
        wait_until(lambda: second.read_available() == 0 and letters.count() == 25, 20, "the second adds the new ones")
        # It may read them in several steps.
        wait_until(
            lambda: first.read_available() == 0 and first._next == second._next, 20, "the first reads them later"
        )
    assert letters.count() == 25


def test_a_topic_that_was_created_again_begins_again(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = Letters(with_prefix(settings, f"again-{os.getpid()}-"), connection)
    ensure_topics(letters.settings)
    monkeypatch.setattr(tailer, "TOPICS_SECONDS", 0.0)
    letters.write(3)
    letters.write(1, service="order-service", topic="payment.failed.v1")
    with letters.tailing() as running:
        wait_until(lambda: running.read_available() == 0 and letters.count() == 4, 20, "the letters")
        delete_topics(letters.settings, lambda name: SERVICE in name)
        ensure_topics(letters.settings)
        letters.write(2, reason="NO_KEY")
        wait_until(
            lambda: running.read_available() == 0 and letters.count(reason="NO_KEY") == 2,
            30,
            "the letters of the new topic",
        )
    assert letters.count(service=SERVICE) == 2
    assert letters.count(service="order-service") == 1


def test_letters_that_kafka_no_longer_has_leave_the_index(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    letters.write(6)
    letters.index(6)
    topic = letters.name(dead_letter_topic(SERVICE))
    admin = AdminClient({"bootstrap.servers": letters.brokers, "log_level": 0})
    ends = {letter.partition: 0 for letter in index.letters(letters.connection, Filter(), 10).letters}
    for letter in index.letters(letters.connection, Filter(), 10).letters:
        ends[letter.partition] = max(ends[letter.partition], letter.offset)
    for future in admin.delete_records([TopicPartition(topic, *end) for end in ends.items()]).values():
        future.result(10)
    monkeypatch.setattr(tailer, "EXPIRY_SECONDS", 0.0)
    with letters.tailing() as running:
        wait_until(
            lambda: running.read_available() == 0 and letters.count() == len(ends), 20, "the old letters are removed"
        )
    assert {
        letter.partition: letter.offset for letter in index.letters(letters.connection, Filter(), 10).letters
    } == ends


def test_hostile_letters_have_a_row(letters: Letters) -> None:
    topic = letters.name(dead_letter_topic(SERVICE))
    order_id = str(uuid4())
    long = b"\xff" * 5_000
    publish(
        letters.brokers,
        [(topic, b"\x00\xff", None), (topic, order_id.upper().encode(), b"<script>")],
        {"dlq-topic": b"<img src=x>\x00", "dlq-partition": b"9" * 30, "dlq-offset": b"-1", "dlq-reason": long}
        | {"dlq-error": b"\x1b[2J\x00\n" + long, "redriven-from": b"x/1@2", "redrive-job": b"NaN"},
    )
    publish(letters.brokers, [(topic, None, b"")], {})
    letters.index(3)
    found = index.letters(letters.connection, Filter(), 10).letters
    assert all((letter.error + letter.reason + letter.topic).isprintable() for letter in found)
    assert {letter.order_id for letter in found} == {None, order_id}
    forged = next(letter for letter in found if letter.order_id)
    assert (forged.source_partition, forged.source_offset, forged.redriven_from, forged.tries) == (None, None, None, 1)
    assert len(forged.reason) == 100
    assert index.letter_of(letters.connection, Place(SERVICE, forged.partition, forged.offset)) == forged
    assert index.letters(letters.connection, Filter(order_id=order_id), 10).letters == (forged,)
