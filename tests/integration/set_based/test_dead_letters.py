"""The index of dead letters, and the jobs that redrive or discard them, use a constant number of statements."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from orderstream.dead_letters import index, jobs
from orderstream.dead_letters.index import Filter, Place
from orderstream.dead_letters.jobs import Kind, Selection
from orderstream.dead_letters.runner import JobRunner
from orderstream.dead_letters.tailer import Tailer
from tests.integration.set_based.counting import Case, Counting, Work, assert_set_based
from tests.support.letters import SERVICE, SOURCE, Letters, own_letters
from tests.support.waiting import wait_until

EMPTY = "TRUNCATE dead_letters, dead_letter_actions, dead_letter_jobs"


def _letters(counting: Counting) -> Letters:
    """Return topics of these tests. Their index begins now."""
    settings = counting.settings.model_copy(update={"postgres_url": counting.plain_url})
    return counting.opened.enter_context(own_letters(settings, counting.tables))


def _indexed_rows(counting: Counting, number: int) -> Letters:
    """Add letters to the index that no topic has."""
    counting.tables.execute(EMPTY)
    counting.tables.execute(
        'INSERT INTO dead_letters (service, partition, "offset", reason, source_topic, error, size, cut, tries)'
        " SELECT %s, 0, n, 'NOT_JSON', %s, 'why', 7, false, 0 FROM generate_series(1, %s) AS n",
        (SERVICE, SOURCE, number),
    )
    return Letters(counting.settings.model_copy(update={"postgres_url": counting.plain_url}), counting.tables)


def _written(counting: Counting, number: int) -> Letters:
    """Write letters and add them to the index."""
    counting.tables.execute(EMPTY)
    letters = _letters(counting)
    letters.write(number)
    letters.index(number)
    return letters


@contextmanager
def _tailing(counting: Counting, letters: Letters) -> Iterator[Tailer]:
    tailer = Tailer(letters.settings, counting.settings.postgres_url)
    try:
        yield tailer
    finally:
        tailer.close()


def _indexed(counting: Counting, number: int) -> Work:
    letters = _letters(counting)
    tailer = counting.opened.enter_context(_tailing(counting, letters))
    wait_until(lambda: tailer.read_available() == 0, 20, "the tailer has read what there is")
    letters.write(number)
    return lambda: _read(tailer, number)


def _read(tailer: Tailer, wanted: int) -> int:
    entries, read = tailer._gather(20)
    while len(entries) < wanted:
        more, positions = tailer._gather(20)
        entries, read = entries + more, read | positions
    tailer._store(entries, read)
    return len(entries)


def _queued(counting: Counting, number: int) -> Work:
    letters = _indexed_rows(counting, number)
    selection = Selection(letters=tuple(_places(letters)))

    def work() -> int:
        counted = jobs.count(counting.work, "redrive", selection)
        created = jobs.create(
            counting.work, "redrive", selection, counted.confirm, actor="test", note="why", rate=jobs.RATE_MAX
        )
        return created.letters

    return work


def _places(letters: Letters) -> Iterator[Place]:
    for letter in index.letters(letters.connection, Filter(), 100).letters:
        yield Place(letter.service, letter.partition, letter.offset)


def _worked(kind: Kind, written: Callable[[Counting, int], Letters]) -> Case:
    def case(counting: Counting, number: int) -> Work:
        letters = written(counting, number)
        job = letters.start(kind)
        runner = JobRunner(letters.settings, counting.settings.postgres_url, job.id)
        counting.opened.callback(runner.close)

        def work() -> int:
            runner.run_one()
            return letters.job(job).done

        return work

    return case


LETTERS = {
    "indexed letters": _indexed,
    "queued letters": _queued,
    "redriven letters": _worked("redrive", _written),
    "discarded letters": _worked("discard", _indexed_rows),
}


@pytest.mark.parametrize("case", LETTERS.values(), ids=LETTERS)
def test_dead_letters(counting: Counting, case: Case) -> None:
    assert_set_based(counting, case)
