"""Counts, creates, lists and cancels jobs that redrive or discard many dead letters (P9).

A job touches only letters that its operator has counted: ids up to the bound of the count, unchanged since the count.
A letter is queued by one job at a time. A `JobRunner` works on the queue.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, structs

from orderstream.dead_letters import index
from orderstream.dead_letters.index import Filter, Letter, Number, Place
from orderstream.dead_letters.redrive import SOURCES
from orderstream.postgres.connect import Connection
from orderstream.postgres.sql import load

JOB_LETTERS_MAX = 100_000
"""Letters of one job. A second job takes the rest."""
RATE_MAX = 5_000
RATE_DEFAULT = 100
NOTE_MAX_CHARACTERS = 1_000
COUNT_MAX_AGE_SECONDS = 3_600
"""A count that an operator confirms is not older."""
SAMPLE_LETTERS = 10
QUEUE_SECONDS = 60
"""Longest statement that queues the letters of a job."""
JOBS_MAX = 200

SQL = load("orderstream.dead_letters", "jobs.sql")
LIMIT_STATEMENTS = load("orderstream.postgres")["limit_statements"]

Kind = Literal["redrive", "discard"]
JobState = Literal["waiting", "running", "paused", "done", "cancelled"]
UNFINISHED: tuple[JobState, ...] = ("waiting", "running", "paused")


class JobRefusedError(Exception):
    """A job was not created. `name` is the name of the problem, and the message says what to do."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(detail)
        self.name = name


class Selection(Struct, frozen=True, rename="camel", omit_defaults=True):
    """The letters that a job means: those that match a filter, or letters that were named one by one."""

    filter: Filter | None = None
    letters: tuple[Place, ...] | None = None
    again: bool = False
    """Whether letters that were redriven or discarded before are meant too."""


class Confirm(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What an operator has seen and confirms: the count, its time, and the newest id that was counted."""

    count: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    counted_at: Annotated[datetime, Meta(tz=True)]
    bound: Number


class Skipped(Struct, frozen=True, rename="camel"):
    """Letters that match and that a job does not touch, by the reason."""

    cut: int = 0
    foreign_topic: int = 0
    already_redriven: int = 0
    already_discarded: int = 0
    in_another_job: int = 0
    missing: int = 0

    @property
    def total(self) -> int:
        """Return their number."""
        return sum(structs.astuple(self))


class Count(Struct, frozen=True, rename="camel"):
    """The result of a dry run. `more` says that letters may be left: a further job, or a filter by time, finds them."""

    count: int
    counted_at: datetime
    bound: int
    more: bool
    skipped: Skipped
    sample: tuple[Letter, ...]

    @property
    def confirm(self) -> Confirm:
        """Return what the real request must repeat."""
        return Confirm(self.count, self.counted_at, self.bound)


class Job(Struct, frozen=True, rename="camel"):
    """A row of `dead_letter_jobs`. `came_back` counts the dead letters that its redriven records became."""

    id: int
    kind: Kind
    filter: msgspec.Raw
    actor: str
    note: str
    rate: int
    counted: int
    counted_at: datetime
    letters: int
    done: int
    refused: int
    gone: int
    sent_twice: int
    state: JobState
    problem: str | None
    cancel_at: datetime | None
    cancelled_by: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    came_back: int

    @classmethod
    def of(cls, row: Sequence[Any]) -> "Job":
        """Convert a row."""
        job_id, kind, filter_text, *others = row
        return cls(job_id, kind, msgspec.Raw(filter_text.encode()), *others)

    @property
    def left(self) -> int:
        """Return the number of letters that the job has not come to."""
        return 0 if self.is_finished else self.letters - self.done - self.refused - self.gone

    @property
    def is_finished(self) -> bool:
        """Whether no runner works on it any more."""
        return self.state not in UNFINISHED


class JobAction(Struct, frozen=True, rename="camel"):
    """What a job did with one letter."""

    id: int
    service: str
    partition: int
    offset: int
    state: str
    sends: int
    at: datetime | None
    detail: str | None


def count(connection: Connection, kind: Kind, selection: Selection) -> Count:
    """Count what a job would touch and what it would skip. Changes nothing."""
    bound, counted_at = connection.execute(index.SQL["newest_id"]).fetchone() or (0, None)
    values, chosen = _values(connection, kind, selection, bound)
    found: dict[str, int] = dict(connection.execute(SQL["count_letters"], values).fetchall())
    total = found.pop("", 0)
    names = dict(zip(Skipped.__struct_encode_fields__, Skipped.__struct_fields__, strict=True))
    missing = len(set(selection.letters or ())) - len(chosen) if selection.letters is not None else 0
    skipped = Skipped(**{names[name]: number for name, number in found.items()}, missing=missing)
    shown = values if selection.again else values | {"state": "open"}
    sample = connection.execute(index.SQL["letters"], shown | {"limit": SAMPLE_LETTERS}).fetchall()
    stopped = connection.execute(index.SQL["passed_scan"], values).fetchone() is not None
    return Count(
        min(total, JOB_LETTERS_MAX),
        counted_at,
        bound,
        total > JOB_LETTERS_MAX or stopped,
        skipped,
        tuple(Letter(*row) for row in sample),
    )


def create(
    connection: Connection, kind: Kind, selection: Selection, confirm: Confirm, *, actor: str, note: str, rate: int
) -> Job:
    """Queue the counted letters and return the job. Raises JobRefusedError and changes nothing if the count is wrong.

    The job has fewer letters than the count if some of them were handled since.
    """
    _, now = connection.execute(index.SQL["newest_id"]).fetchone() or (0, confirm.counted_at)
    if not timedelta(0) <= now - confirm.counted_at <= timedelta(seconds=COUNT_MAX_AGE_SECONDS):
        raise JobRefusedError("count-too-old", "The count is older than an hour: make the dry run again.")
    with connection.transaction():
        # On a busy machine, 100,000 rows with their indexes need longer than other statements may take.
        connection.execute(LIMIT_STATEMENTS, {"limit": f"{QUEUE_SECONDS}s"})
        values, _ = _values(connection, kind, selection, confirm.bound)
        wanted = {
            "kind": kind,
            "filter": msgspec.json.encode(selection).decode(),
            "actor": actor,
            "note": note,
            "rate": rate,
            "counted": confirm.count,
            "counted_at": confirm.counted_at,
            "bound": confirm.bound,
        }
        (job_id,) = connection.execute(SQL["create_job"], wanted).fetchone() or (0,)
        limit = confirm.count + 1 if confirm.count < JOB_LETTERS_MAX else JOB_LETTERS_MAX
        queueing = values | {"job_id": job_id, "counted_at": confirm.counted_at, "limit": limit}
        letters = connection.execute(SQL["queue_letters"], queueing).rowcount
        if letters > confirm.count:
            raise JobRefusedError(
                "count-grew", f"More than the {confirm.count} counted letters match now: make the dry run again."
            )
        if not letters:
            raise JobRefusedError("nothing-to-do", "No counted letter is left: make the dry run again.")
        connection.execute(SQL["set_letters"], {"job_id": job_id, "letters": letters})
        created = job(connection, job_id)
    assert created is not None
    return created


def jobs(connection: Connection, limit: int, cursor: int | None = None) -> tuple[Job, ...]:
    """Return the newest jobs, at most `limit`. With `cursor`, only those with this id or a lower one."""
    values = {"upto": 2**63 - 1 if cursor is None else cursor, "limit": limit}
    return tuple(Job.of(row) for row in connection.execute(SQL["jobs"], values))


def job(connection: Connection, job_id: int) -> Job | None:
    """Return a job, or None if there is no such job."""
    found = jobs(connection, 1, job_id)
    return found[0] if found and found[0].id == job_id else None


def actions(
    connection: Connection, job_id: int, limit: int, after: int = 0, state: str | None = None
) -> list[JobAction]:
    """Return what a job did with its letters, in its order, after the action with the id `after`."""
    values = {"job_id": job_id, "after": after, "limit": limit, "state": state}
    return [JobAction(*row) for row in connection.execute(SQL["job_actions"], values)]


def cancel(connection: Connection, job_id: int, actor: str) -> bool:
    """Ask the runner to stop the job, and return whether it was not finished or cancelled before.

    Letters that are being sent are finished first, so that their result is known.
    """
    return connection.execute(SQL["request_cancel"], {"job_id": job_id, "actor": actor}).rowcount > 0


def _values(connection: Connection, kind: Kind, selection: Selection, bound: int) -> tuple[dict[str, Any], list[int]]:
    """Return the parameters of `count_letters`, and the ids of the letters that were named one by one."""
    chosen: list[int] = []
    if selection.letters is not None:
        chosen = index.ids_at(connection, selection.letters)
        values = index.search_values(Filter(), chosen, bound)
    else:
        values = index.parameters(connection, selection.filter or Filter(), bound)
    own = [(service, topic) for service, topics in SOURCES.items() for topic in topics]
    values |= {
        "kind": kind,
        "again": selection.again,
        "own_services": [service for service, _ in own],
        "own_topics": [topic for _, topic in own],
    }
    return values, chosen
