"""What operators do with dead letters: count, start a job, cancel it. The API, the pages and the commands use these."""

from orderstream.console.actions.log import Action, recorded
from orderstream.dead_letters import jobs
from orderstream.dead_letters.jobs import Confirm, Job, Kind, Selection
from orderstream.postgres.connect import Connection


def start(
    connection: Connection, kind: Kind, selection: Selection, confirm: Confirm, *, actor: str, note: str, rate: int
) -> Job:
    """Create a job for the counted letters, and record the action. Raises JobRefusedError and psycopg.Error."""
    action = Action(f"dead-letters.{kind}", "dead letters", actor, note, {"count": confirm.count, "rate": rate})
    with recorded(connection, action) as outcome:
        job = jobs.create(connection, kind, selection, confirm, actor=actor, note=note, rate=rate)
        outcome.result = {"job": job.id, "letters": job.letters}
    return job


def cancel(connection: Connection, job_id: int, *, actor: str) -> Job | None:
    """Ask for the end of a job, and return the job; None if there is no such job. Raises psycopg.Error.

    Only the first cancel of an unfinished job is recorded.
    """
    job = jobs.job(connection, job_id)
    if job is None or job.is_finished or job.cancel_at is not None:
        return job
    action = Action("dead-letters.cancel", f"job {job_id}", actor, "", {"job": job_id})
    with recorded(connection, action) as outcome:
        outcome.result = {"cancelled": jobs.cancel(connection, job_id, actor)}
    return jobs.job(connection, job_id)
