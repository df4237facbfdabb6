"""Jobs touch only counted letters, survive a kill, and account for each letter in its source topic (P9)."""

import threading
from collections import Counter
from datetime import timedelta

import pytest
from confluent_kafka import KafkaError, TopicPartition
from msgspec import structs

from orderstream.dead_letters import index, jobs
from orderstream.dead_letters.index import Filter, Place
from orderstream.dead_letters.jobs import Job, JobRefusedError, Selection
from orderstream.dead_letters.letter import DeadLetter, publication
from orderstream.dead_letters.redrive import TRIES_KEPT
from orderstream.dead_letters.runner import JobRunner
from orderstream.kafka.client import consumer
from orderstream.kafka.envelope import Record
from orderstream.kafka.errors import PublishError
from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from tests.integration.worker.running import process
from tests.support.letters import SERVICE, SOURCE, Letters
from tests.support.topics import Letter, Tap, end_offsets
from tests.support.waiting import wait_until


def _origins(records: list[Letter]) -> Counter[str]:
    return Counter(record.headers["redriven-from"].decode() for record in records)


def _tap(letters: Letters, topic: str = SOURCE) -> Tap:
    return Tap(letters.brokers, [letters.name(topic)])


def test_a_redrive_publishes_key_value_and_headers_into_the_source_topic(letters: Letters) -> None:
    letters.write(3, value=b"\xff any bytes")
    letters.index(3)
    with _tap(letters) as tap:
        job = letters.run(letters.start())
        records = tap.count(3)
    assert (job.state, job.letters, job.done, job.sent_twice) == ("done", 3, 3, 0)
    found = index.letters(letters.connection, Filter(state="redriven"), 10).letters
    assert _origins(records) == Counter(letter.place for letter in found)
    for record in records:
        assert (record.key or b"").startswith(b"key-")
        assert record.value == b"\xff any bytes"
        assert {name: value for name, value in record.headers.items() if name != "redriven-from"} == {
            "traceparent": b"00-x",
            "redrive-job": str(job.id).encode(),
        }
    (past,) = index.history(letters.connection, found[0].id)
    assert (past.state, past.sends, past.actor, past.note) == ("sent", 1, "test", "why")


def test_a_letter_that_arrives_after_the_count_is_not_touched(letters: Letters) -> None:
    letters.write(3)
    letters.index(3)
    counted = jobs.count(letters.connection, "redrive", Selection(Filter()))
    letters.write(2)
    letters.index(5)
    with _tap(letters) as tap:
        job = _create(letters, Selection(Filter()), counted)
        assert letters.run(job).done == counted.count == 3
        tap.count(3)
    assert letters.count(state="open") == 2


def _create(letters: Letters, selection: Selection, counted: jobs.Count, rate: int = 5_000) -> Job:
    return jobs.create(letters.connection, "redrive", selection, counted.confirm, actor="test", note="why", rate=rate)


def test_a_count_that_does_not_hold_is_refused(letters: Letters) -> None:
    letters.write(3)
    letters.index(3)
    selection = Selection(Filter())
    counted = jobs.count(letters.connection, "redrive", selection)
    old = counted.counted_at - timedelta(hours=2)
    for wrong, name in (
        (structs.replace(counted, count=2), "count-grew"),
        (structs.replace(counted, counted_at=old), "count-too-old"),
        (structs.replace(counted, counted_at=counted.counted_at + timedelta(hours=1)), "count-too-old"),
        (structs.replace(counted, bound=0), "nothing-to-do"),
    ):
        with pytest.raises(JobRefusedError) as refused:
            _create(letters, selection, wrong)
        assert refused.value.name == name
    assert jobs.jobs(letters.connection, 10) == ()
    assert _create(letters, selection, structs.replace(counted, count=9)).letters == 3


def test_a_job_takes_a_limited_number_of_letters(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "JOB_LETTERS_MAX", 2)
    letters.write(3)
    letters.index(3)
    counted = jobs.count(letters.connection, "discard", Selection(Filter()))
    assert (counted.count, counted.more) == (2, True)
    assert letters.run(letters.start("discard")).done == 2
    rest = jobs.count(letters.connection, "discard", Selection(Filter()))
    assert (rest.count, rest.more, rest.skipped.already_discarded) == (1, False, 2)


def test_letters_that_cannot_be_redriven_are_skipped_with_the_reason(letters: Letters) -> None:
    letters.write(1)
    letters.write(1, cut_from="5000000")
    letters.write(1, topic="payments-of-others.v1")
    letters.write(1, topic="payment.failed.v1")  # A topic of ours that this service does not consume.
    letters.index(4)
    selection = Selection(Filter())
    counted = jobs.count(letters.connection, "redrive", selection)
    assert (counted.count, counted.skipped.cut, counted.skipped.foreign_topic) == (1, 1, 2)
    assert letters.run(_create(letters, selection, counted)).done == 1
    again = jobs.count(letters.connection, "redrive", selection)
    assert (again.count, again.skipped.already_redriven, again.skipped.total) == (0, 1, 4)
    assert jobs.count(letters.connection, "redrive", structs.replace(selection, again=True)).count == 1
    assert jobs.count(letters.connection, "discard", selection).count == 3
    assert letters.run(letters.start("discard")).done == 3
    assert letters.count(state="discarded") == 3
    named = (Place(SERVICE, 0, 10**9),)
    assert jobs.count(letters.connection, "discard", Selection(letters=named)).skipped.missing == 1


def test_a_letter_is_in_one_unfinished_job_at_a_time(letters: Letters) -> None:
    letters.write(4)
    letters.index(4)
    both = Selection(Filter())
    counted = jobs.count(letters.connection, "redrive", both)
    with _tap(letters) as tap:
        (chosen,) = index.letters(letters.connection, Filter(), 1).letters
        first = letters.start(selection=Selection(letters=(Place(SERVICE, chosen.partition, chosen.offset),)))
        second = _create(letters, both, counted)
        assert (first.letters, second.letters) == (1, 3)
        assert jobs.count(letters.connection, "redrive", both).skipped.in_another_job == 4
        assert {letters.run(job).state for job in (first, second)} == {"done"}
        assert set(_origins(tap.count(4)).values()) == {1}


def test_two_runners_share_the_jobs_without_a_letter_twice(letters: Letters) -> None:
    letters.write(30)
    letters.index(30)
    places = [Place(x.service, x.partition, x.offset) for x in index.letters(letters.connection, Filter(), 50).letters]
    started = [letters.start(selection=Selection(letters=tuple(part)), rate=100) for part in (places[:15], places[15:])]
    runners = [JobRunner(letters.settings, letters.settings.postgres_url) for _ in range(2)]
    with _tap(letters) as tap:
        threads = [threading.Thread(target=runner.run) for runner in runners]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(letters.job(job).state == "done" for job in started), 20, "both jobs")
        for runner, thread in zip(runners, threads, strict=True):
            runner.stop()
            thread.join(20)
        assert set(_origins(tap.count(30)).values()) == {1}


def test_a_cancelled_job_leaves_the_rest_as_it_is(letters: Letters) -> None:
    letters.write(40)
    letters.index(40)
    job = letters.start(rate=2)
    runner = JobRunner(letters.settings, letters.settings.postgres_url, job.id)
    thread = threading.Thread(target=runner.run_one)
    with _tap(letters) as tap:
        thread.start()
        wait_until(lambda: letters.job(job).done > 0, 20, "the first letters")
        assert jobs.cancel(letters.connection, job.id, "someone")
        thread.join(20)
        ended = letters.job(job)
        assert (ended.state, ended.cancelled_by) == ("cancelled", "someone")
        assert len(tap.so_far()) == ended.done < 40
    runner.close()
    assert letters.count(state="open") == 40 - ended.done
    assert not jobs.cancel(letters.connection, job.id, "someone")
    states = Counter(action.state for action in jobs.actions(letters.connection, job.id, 100))
    assert states == {"sent": ended.done, "cancelled": 40 - ended.done}


def test_after_a_kill_no_letter_is_lost_and_a_second_send_is_in_the_history(letters: Letters) -> None:
    letters.write(120)
    letters.index(120)
    job = letters.start(rate=10)
    with _tap(letters) as tap:
        for _ in range(2):
            with process(
                "tests.integration.dead_letters.run_jobs", letters.settings, letters.settings.kafka_topic_prefix
            ) as child:
                before = letters.job(job).done
                wait_until(lambda: letters.job(job).done > before, 60, "the job makes progress")  # noqa: B023
                child.kill()
                child.ends()
            letters.connection.execute("UPDATE dead_letter_jobs SET lease_until = now() - interval '1 second'")
        letters.connection.execute("UPDATE dead_letter_jobs SET rate = 5000")
        ended = letters.run(job)
        sent = _origins(tap.so_far())
    assert (ended.state, ended.done, ended.gone, ended.refused) == ("done", 120, 0, 0)
    assert len(sent) == 120
    known = {
        f"{action.service}/{action.partition}@{action.offset}": action.sends
        for action in jobs.actions(letters.connection, job.id, 1_000)
    }
    assert all(number <= known[place] for place, number in sent.items())
    assert ended.sent_twice == sum(sends > 1 for sends in known.values())


def test_a_runner_that_lost_its_job_stores_what_it_sent(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
    letters.write(2)
    letters.index(2)
    job = letters.start()
    publish_all = Publisher.publish

    def lose(publisher: Publisher, records: list[Publication]) -> None:
        publish_all(publisher, records)
        letters.connection.execute(
            "UPDATE dead_letter_jobs SET runner = 'another', lease_until = now() + interval '1 h'"
        )

    monkeypatch.setattr(Publisher, "publish", lose)
    assert letters.run(job).state == "running"
    letters.connection.execute("UPDATE dead_letter_jobs SET lease_until = now()")
    monkeypatch.setattr(Publisher, "publish", publish_all)
    ended = letters.run(job)
    assert (ended.state, ended.done, ended.sent_twice) == ("done", 2, 0)


def test_without_kafka_a_job_pauses_with_the_reason_and_goes_on(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.write(2)
    letters.index(2)
    job = letters.start()
    publish_all = Publisher.publish
    seen: list[str | None] = []

    def fail(_publisher: Publisher, records: list[Publication]) -> None:
        monkeypatch.setattr(Publisher, "publish", check)
        raise PublishError(KafkaError(KafkaError._MSG_TIMED_OUT), len(records))

    def check(publisher: Publisher, records: list[Publication]) -> None:
        seen.append(letters.job(job).problem)
        publish_all(publisher, records)

    monkeypatch.setattr(Publisher, "publish", fail)
    ended = letters.run(job)
    assert (ended.state, ended.done, ended.sent_twice, ended.problem) == ("done", 2, 2, None)
    assert (seen[0] or "").startswith("Kafka does not answer")


def test_a_letter_that_kafka_refuses_stays_open_with_the_reason(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.write(2)
    letters.index(2)

    def refuse(_publisher: Publisher, records: list[Publication]) -> None:
        error = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
        raise PublishError(error, 1, {0: "too large"}, frozenset())

    monkeypatch.setattr(Publisher, "publish", refuse)
    ended = letters.run(letters.start())
    assert (ended.state, ended.done, ended.refused) == ("done", 1, 1)
    (refused,) = jobs.actions(letters.connection, ended.id, 10, state="refused")
    assert refused.detail == "too large"
    assert letters.count(state="open") == 1


def test_a_letter_of_another_topic_at_the_same_position_is_not_sent(letters: Letters) -> None:
    letters.write(2)
    letters.index(2)
    job = letters.start()
    letters.connection.execute("UPDATE dead_letters SET size = size + 1")
    with _tap(letters) as tap:
        ended = letters.run(job)
        assert tap.so_far() == []
    assert (ended.state, ended.gone, ended.done) == ("done", 2, 0)


def test_a_record_that_fails_again_shows_its_tries(letters: Letters) -> None:
    """The test gives each redriven record up again, as a worker does."""
    letters.write(1)
    letters.index(1)
    (first,) = index.letters(letters.connection, Filter(), 1).letters
    reader = consumer(letters.settings, "test")
    ends = end_offsets(letters.brokers, [letters.name(SOURCE)])
    reader.assign([TopicPartition(*partition, end) for partition, end in ends.items()])
    worker = Publisher(letters.settings, "test")
    try:
        for tries in range(1, TRIES_KEPT + 2):
            job = letters.run(letters.start())
            message = wait_until(lambda: reader.poll(0.1), 20, "the redriven record")
            assert message is not None
            failed = DeadLetter(Record.of(message, letters.settings.kafka_topic_prefix), "FAILED", "why", 1)
            worker.publish([publication(SERVICE, failed)])
            letters.index(tries + 1)
            (newest,) = index.letters(letters.connection, Filter(state="open"), 1).letters
            assert newest.tries == min(tries, TRIES_KEPT)
            assert letters.job(job).came_back == 1
    finally:
        reader.close()
    *_, second, oldest = index.letters(letters.connection, Filter(), 50).letters
    assert (oldest.id, oldest.failed_again, second.redriven_from) == (first.id, second.place, first.place)
