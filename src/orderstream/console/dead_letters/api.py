"""The operations for dead letters: find, show, redrive, discard, and the jobs that do so."""

import time
from typing import Annotated, Literal

from msgspec import Meta, Struct, field, structs

from orderstream.console.context import Console
from orderstream.console.dead_letters import acts
from orderstream.console.dead_letters.letter_view import SHOWN_BYTES, LetterView, is_possible, view
from orderstream.console.web.api import Answer, Call, Operation
from orderstream.console.web.pages import not_found
from orderstream.dead_letters import index, jobs
from orderstream.dead_letters.index import CHOSEN_MAX, PAGE_MAX, Filter, Group, Letter, Past, Place
from orderstream.dead_letters.jobs import (
    JOBS_MAX,
    NOTE_MAX_CHARACTERS,
    RATE_DEFAULT,
    RATE_MAX,
    Confirm,
    Count,
    Job,
    JobAction,
    JobRefusedError,
    Kind,
    Selection,
    Skipped,
)
from orderstream.dead_letters.refused_records import RefusedHead, heads
from orderstream.http_server.problems import Problem

PATH = "/api/dead-letters"
PAGE_LETTERS = 50
CACHED_MAX = 32
"""Answers of searches that are kept."""
CACHED_SECONDS = 10.0
"""An answer is not kept longer, also if nothing seems to have changed."""

Limit = Annotated[int, Meta(ge=1, le=PAGE_MAX)]


class LettersQuery(Filter, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The filters, and the page of the list."""

    limit: Limit = PAGE_LETTERS
    cursor: int | None = None


class LettersAnswer(Struct, frozen=True, rename="camel"):
    """`stopped` says that the search did not look at the oldest letters, `groups_cut` that there are more groups.

    `problem` says why the index may be behind Kafka.
    """

    groups: tuple[Group, ...]
    letters: tuple[Letter, ...]
    next: int | None
    stopped: bool
    groups_cut: bool
    problem: str | None


class LetterQuery(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """`all=true` asks for all bytes."""

    all: bool = False


class Change(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A redrive or a discard: a filter or single letters. Without `dryRun: false`, it only counts."""

    dry_run: bool = True
    filter: Filter | None = None
    letters: Annotated[tuple[Place, ...], Meta(min_length=1, max_length=CHOSEN_MAX)] | None = None
    again: bool = False
    note: Annotated[str, Meta(max_length=NOTE_MAX_CHARACTERS)] = ""
    rate: Annotated[int, Meta(ge=1, le=RATE_MAX)] = RATE_DEFAULT
    confirm: Confirm | None = None


class ChangeAnswer(Struct, frozen=True, rename="camel"):
    """A dry run has all members but `job`. The real request repeats `confirm`, and its answer has only `job`."""

    dry_run: bool
    count: int | None = None
    more: bool = False
    skipped: Skipped | None = None
    sample: tuple[Letter, ...] = ()
    confirm: Confirm | None = None
    job: Job | None = None


class RefusedQuery(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """How many of the newest to return."""

    limit: Limit = PAGE_LETTERS


class RefusedAnswer(Struct, frozen=True, rename="camel"):
    """The newest refused records. `cut` says that there are more."""

    records: tuple[RefusedHead, ...]
    cut: bool


class JobsQuery(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A page of the list of jobs."""

    limit: Annotated[int, Meta(ge=1, le=JOBS_MAX)] = 20
    cursor: int | None = None


class JobsAnswer(Struct, frozen=True, rename="camel"):
    """Jobs, newest first."""

    jobs: tuple[Job, ...]
    next: int | None


class JobLettersQuery(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What a job did with its letters: a page, of one state or of all."""

    state: Literal["queued", "sending", "sent", "discarded", "refused", "gone", "cancelled"] | None = None
    limit: Limit = PAGE_LETTERS
    after: int = 0


class JobLettersAnswer(Struct, frozen=True, rename="camel"):
    """`next` is `after` of the next page."""

    letters: tuple[JobAction, ...]
    next: int | None = field(default=None)


class Handlers:
    """The handlers of the operations. The pages call the same functions."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._work = console.dead_letters
        self._cached: dict[tuple[Filter, int, int | None], tuple[object, LettersAnswer]] = {}

    async def search(self, wanted: Filter, limit: int = PAGE_LETTERS, cursor: int | None = None) -> LettersAnswer:
        """Return the groups and a page of the letters that match."""
        self._work.tailer.look()
        return await self._console.work(self._search, wanted, limit, cursor)

    def _search(self, wanted: Filter, limit: int, cursor: int | None) -> LettersAnswer:
        """Search, or return the last answer if nothing has changed since. A page asks every second."""
        asked = (Filter(*(getattr(wanted, name) for name in Filter.__struct_fields__)), limit, cursor)
        with self._console.stores.reading() as connection:
            state = (index.changes(connection), int(time.monotonic() / CACHED_SECONDS))
            known = self._cached.get(asked)
            if known is None or known[0] != state:
                groups = index.groups(connection, wanted)
                letters = index.letters(connection, wanted, limit, cursor)
                stopped = groups.stopped or letters.stopped
                known = state, LettersAnswer(groups.groups, letters.letters, letters.next, stopped, groups.cut, None)
                if len(self._cached) >= CACHED_MAX:
                    self._cached.clear()
                self._cached[asked] = known
        return structs.replace(known[1], problem=self._work.tailer.problem)

    async def letter(self, path: dict[str, str], *, all_bytes: bool = False) -> LetterView:
        """Return one letter. Raises Problem 404."""
        place = place_of(path)

        def read() -> LetterView | None:
            row: Letter | None = None
            past: tuple[Past, ...] = ()
            if is_possible(place):
                with self._console.stores.reading() as connection:
                    row = index.letter_of(connection, place)
                    past = index.history(connection, row.id) if row else ()
            shown_bytes = None if all_bytes else SHOWN_BYTES
            silent = self._console.flow.kafka_is_silent()
            return view(self._console.settings, place, row, past, shown_bytes, is_kafka_silent=silent)

        found = await self._console.work(read)
        if found is None:
            raise not_found("dead letter. Kafka may have deleted it")
        return found

    async def count(self, kind: Kind, selection: Selection) -> Count:
        """Count what a job would touch."""

        def read() -> Count:
            with self._console.stores.reading() as connection:
                return jobs.count(connection, kind, selection)

        return await self._console.work(read)

    async def start(
        self, kind: Kind, selection: Selection, confirm: Confirm | None, *, actor: str, note: str, rate: int
    ) -> Job:
        """Start a job. Raises Problem 400 and 409."""
        if confirm is None:
            detail = "Make a dry run first, and repeat its member `confirm`."
            raise Problem(400, "confirm-missing", "The count is not confirmed", detail)
        if not note.strip():
            raise Problem(400, "note-missing", "A note is missing", "Say in `note` why you do this.")

        def act() -> Job:
            with self._console.stores.acting() as connection:
                return acts.start(connection, kind, selection, confirm, actor=actor, note=note, rate=rate)

        try:
            job = await self._console.work(act)
        except JobRefusedError as error:
            raise Problem(409, error.name, "The job was not started", str(error)) from error
        self._work.runner.wake()
        return job

    async def change(self, kind: Kind, call: Call) -> ChangeAnswer | Answer:
        """POST /api/dead-letters/redrive and /discard."""
        wanted: Change = call.body
        given = (wanted.filter is not None) + (wanted.letters is not None)
        # A dry run without both counts every letter. The real request must say that it means every letter.
        if given > 1 or (given == 0 and not wanted.dry_run):
            detail = "Give either `filter` or `letters`. An empty filter matches every letter."
            raise Problem(400, "invalid-body", "The body is not valid", detail)
        selection = Selection(wanted.filter, wanted.letters, wanted.again)
        if not wanted.dry_run:
            job = await self.start(
                kind, selection, wanted.confirm, actor=call.visitor.actor, note=wanted.note, rate=wanted.rate
            )
            return Answer(ChangeAnswer(dry_run=False, job=job), 202)
        counted = await self.count(kind, selection)
        return ChangeAnswer(True, counted.count, counted.more, counted.skipped, counted.sample, counted.confirm)

    async def refused(self, limit: int) -> RefusedAnswer:
        """Return the newest records that Kafka refused."""

        def read() -> list[RefusedHead]:
            with self._console.stores.reading() as connection:
                return heads(connection, limit + 1)

        found = await self._console.work(read)
        return RefusedAnswer(tuple(found[:limit]), len(found) > limit)

    async def jobs(self, limit: int, cursor: int | None = None) -> JobsAnswer:
        """Return a page of jobs."""

        def read() -> tuple[Job, ...]:
            with self._console.stores.reading() as connection:
                return jobs.jobs(connection, limit + 1, cursor)

        found = await self._console.work(read)
        return JobsAnswer(found[:limit], found[limit].id if len(found) > limit else None)

    async def job(self, path: dict[str, str]) -> Job:
        """Return a job. Raises Problem 404."""
        job_id = number_of(path["id"])

        def read() -> Job | None:
            with self._console.stores.reading() as connection:
                return jobs.job(connection, job_id)

        return _there(await self._console.work(read))

    async def job_letters(self, path: dict[str, str], query: JobLettersQuery) -> JobLettersAnswer:
        """Return what a job did with its letters."""
        job_id = number_of(path["id"])

        def read() -> list[JobAction]:
            with self._console.stores.reading() as connection:
                return jobs.actions(connection, job_id, query.limit + 1, query.after, query.state)

        found = await self._console.work(read)
        more = len(found) > query.limit
        return JobLettersAnswer(tuple(found[: query.limit]), found[query.limit - 1].id if more else None)

    async def cancel(self, path: dict[str, str], actor: str) -> Job:
        """Ask for the end of a job. Raises Problem 404."""
        job_id = number_of(path["id"])

        def act() -> Job | None:
            with self._console.stores.acting() as connection:
                return acts.cancel(connection, job_id, actor=actor)

        return _there(await self._console.work(act))


def operations(console: Console) -> list[Operation]:
    """Return the operations for dead letters."""
    handlers = Handlers(console)

    async def search(call: Call) -> LettersAnswer:
        query: LettersQuery = call.query
        return await handlers.search(query, query.limit, query.cursor)

    async def letter(call: Call) -> LetterView:
        return await handlers.letter(dict(call.path), all_bytes=call.query.all)

    async def refused(call: Call) -> RefusedAnswer:
        return await handlers.refused(call.query.limit)

    async def list_jobs(call: Call) -> JobsAnswer:
        return await handlers.jobs(call.query.limit, call.query.cursor)

    async def job(call: Call) -> Job:
        return await handlers.job(dict(call.path))

    async def job_letters(call: Call) -> JobLettersAnswer:
        return await handlers.job_letters(dict(call.path), call.query)

    async def cancel(call: Call) -> Job:
        return await handlers.cancel(dict(call.path), call.visitor.actor)

    async def redrive(call: Call) -> ChangeAnswer | Answer:
        return await handlers.change("redrive", call)

    async def discard(call: Call) -> ChangeAnswer | Answer:
        return await handlers.change("discard", call)

    again = "Count the letters (dry run), or start a job that "
    return [
        Operation("GET", PATH, "Group and list dead letters.", LettersAnswer, search, query=LettersQuery),
        Operation("POST", f"{PATH}/redrive", f"{again}redrives them.", ChangeAnswer, redrive, body=Change, acts=True),
        Operation("POST", f"{PATH}/discard", f"{again}discards them.", ChangeAnswer, discard, body=Change, acts=True),
        Operation(
            "GET",
            f"{PATH}/refused",
            "List the records that Kafka refused to take.",
            RefusedAnswer,
            refused,
            query=RefusedQuery,
        ),
        Operation("GET", f"{PATH}/jobs", "List jobs, newest first.", JobsAnswer, list_jobs, query=JobsQuery),
        Operation("GET", f"{PATH}/jobs/{{id}}", "Show a job and its progress.", Job, job),
        Operation(
            "GET",
            f"{PATH}/jobs/{{id}}/letters",
            "List what a job did with its letters.",
            JobLettersAnswer,
            job_letters,
            query=JobLettersQuery,
        ),
        Operation("POST", f"{PATH}/jobs/{{id}}/cancel", "Cancel a job.", Job, cancel, acts=True),
        Operation(
            "GET",
            f"{PATH}/{{service}}/{{partition}}/{{offset}}",
            "Show one dead letter with its bytes, its headers and its history.",
            LetterView,
            letter,
            query=LetterQuery,
        ),
    ]


def place_of(path: dict[str, str]) -> Place:
    """Return the position in a path. Raises Problem 404."""
    return Place(path["service"], number_of(path["partition"]), number_of(path["offset"]))


def number_of(text: str) -> int:
    """Return a number in a path. Raises Problem 404."""
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise not_found("page")
    return int(text)


def _there(job: Job | None) -> Job:
    if job is None:
        raise not_found("job")
    return job
