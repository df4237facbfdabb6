"""The commands for dead letters. They work without a console: they fill the index and run the jobs themselves."""
# ruff: noqa: PLC0415

import contextlib
import getpass
import re
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import click

from orderstream.cli.root import HELP_OPTIONS, main, plain_errors, stack_settings

if TYPE_CHECKING:
    from orderstream.dead_letters.index import Filter, Place
    from orderstream.dead_letters.jobs import Count, Job, Kind, Selection
    from orderstream.postgres.connect import Connection
    from orderstream.settings import Settings

CATCH_UP_SECONDS = 60.0
POLL_SECONDS = 0.5
EXIT_NOT_ALL = 1
EXIT_CANCELLED = 130

_GROUP = click.Choice(["payment-worker", "inventory-worker", "order-service"])
_STATE = click.Choice(["open", "redriven", "discarded"])
_LETTER = re.compile(r"([a-z-]+)/(\d{1,10})@(\d{1,18})")
_TIME = click.DateTime(
    ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ"]
)


@main.group(context_settings=HELP_OPTIONS)
def dlq() -> None:
    """Find, redrive and discard dead letters: records that a worker could not process."""


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose letters."""
    options = [
        click.option("--reason", help="Only letters with this reason, for example FAILED."),
        click.option("--topic", help="Only letters from this source topic."),
        click.option("--error", help="Only letters with this error, as `list --json` shows it."),
        click.option("--state", type=_STATE, help="Only letters in this state."),
        click.option("--order", "order_id", help="Only letters of this order."),
        click.option("--from", "since", type=_TIME, help="Only letters since this time, in UTC."),
        click.option("--to", "until", type=_TIME, help="Only letters before this time, in UTC."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@dlq.command("list")
@click.argument("service", type=_GROUP, required=False, metavar="[SERVICE]")
@click.option(
    "-n",
    "limit",
    default=50,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Number of dead letters of each service. With a filter or --json: of all services, at most 200.",
)
@_filters
@click.option("--json", "as_json", is_flag=True, help="Print groups and letters as JSON, as the API answers them.")
def dlq_list(service: str | None, limit: int, as_json: bool, **filters: Any) -> None:
    """List the newest dead letters of all services, or of one SERVICE, with partition, offset, time, reason and key."""
    if as_json or any(value is not None for value in filters.values()):
        _list_from_index(_filter(service, filters), limit, as_json=as_json)
        return
    from confluent_kafka import KafkaException

    from orderstream.dead_letters.reader import newest
    from orderstream.kafka.errors import KafkaRefusedError

    settings = stack_settings()
    with plain_errors(KafkaException, KafkaRefusedError):
        for group in [service] if service else _GROUP.choices:
            for letter in newest(settings, group, limit):
                click.echo(letter.line)


def _list_from_index(wanted: "Filter", limit: int, *, as_json: bool) -> None:
    from orderstream.dead_letters import index

    with _index() as (_, connection):
        page = index.letters(connection, wanted, min(limit, index.PAGE_MAX))
        groups = index.groups(connection, wanted) if as_json else None
    if groups is not None:
        _print_json({"groups": groups.groups, "letters": page.letters, "next": page.next, "stopped": page.stopped})
        return
    for letter in reversed(page.letters):
        at = letter.at.isoformat(timespec="milliseconds") if letter.at else "-"
        source = f"{letter.topic}/{letter.source_partition}@{letter.source_offset}"
        state = "failed again" if letter.failed_again else letter.state
        click.echo(
            f"{letter.service} {letter.partition} {letter.offset}  {at}  {letter.reason}  {source}"
            f"  {letter.order_id or '-'}  {state}"
        )
    if page.next is not None:
        click.echo("There are more. Narrow the filter to see them.", err=True)


@dlq.command("show")
@click.argument("service", type=_GROUP, metavar="SERVICE")
@click.argument("partition", type=click.IntRange(min=0))
@click.argument("offset", type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True, help="Print the letter as JSON, as the API answers it.")
def dlq_show(service: str, partition: int, offset: int, as_json: bool) -> None:
    """Show one dead letter. `list` shows its SERVICE, PARTITION and OFFSET."""
    from confluent_kafka import KafkaException

    from orderstream.dead_letters.reader import letter_at
    from orderstream.kafka.errors import KafkaRefusedError

    if as_json:
        _show_json(service, partition, offset)
        return
    with plain_errors(KafkaException, KafkaRefusedError):
        letter = letter_at(stack_settings(), service, partition, offset)
    if letter is None:
        raise click.ClickException("there is no such dead letter")
    click.echo(letter.text)


def _show_json(service: str, partition: int, offset: int) -> None:
    from orderstream.console.dead_letters.letter_view import view
    from orderstream.dead_letters import index
    from orderstream.dead_letters.index import Place

    place = Place(service, partition, offset)
    with _index() as (settings, connection):
        row = index.letter_of(connection, place)
        history = index.history(connection, row.id) if row else ()
        found = view(settings, place, row, history, None, is_kafka_silent=False)
    if found is None:
        raise click.ClickException("there is no such dead letter")
    _print_json(found)


def _job_command(kind: "Kind", summary: str) -> None:
    """Add the command that redrives or discards."""

    @click.option("--service", type=_GROUP, help="Only letters of this service.")
    @_filters
    @click.option("--letter", "chosen", multiple=True, metavar="SERVICE/PARTITION@OFFSET", help="Only this letter.")
    @click.option("--all", "every", is_flag=True, help="All letters. It is needed if there is no filter.")
    @click.option("--again", is_flag=True, help="Also letters that were redriven or discarded before.")
    @click.option("--note", default="", help="Why you do this. It is stored with the job.")
    @click.option("--rate", default=100, show_default=True, type=click.IntRange(1, 5_000), help="Letters per second.")
    @click.option("--dry-run", is_flag=True, help="Only count. This is the default.")
    @click.option("--yes", is_flag=True, help="Do it for the letters that are there now.")
    @click.option("--count", "expected", type=click.IntRange(1), help="Do it for at most this number of letters.")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    def run(chosen: tuple[str, ...], every: bool, again: bool, **given: Any) -> None:
        names = ("reason", "topic", "error", "state", "order_id", "since", "until")
        selection = _selection(
            given["service"], {name: given[name] for name in names}, chosen, every=every, again=again
        )
        is_real = (given["yes"] or given["expected"] is not None) and not given["dry_run"]
        if is_real and not given["note"].strip():
            raise click.UsageError("--note is needed: say why you do this")
        sys.exit(_count_and_run(kind, selection, given, is_real=is_real))

    dlq.command(kind, help=summary)(run)


_job_command(
    "redrive", "Publish dead letters into their source topics again. Without --yes or --count, only count them."
)
_job_command("discard", "Take dead letters out of the open ones. Without --yes or --count, only count them.")


@dlq.command("jobs")
@click.option("-n", "limit", default=20, show_default=True, type=click.IntRange(1, 200), help="Number of jobs.")
@click.option("--run", "run_job", type=click.IntRange(1), metavar="JOB", help="Work on this job until it ends.")
@click.option("--cancel", "cancel_job", type=click.IntRange(1), metavar="JOB", help="Cancel this job.")
def dlq_jobs(limit: int, run_job: int | None, cancel_job: int | None) -> None:
    """List the newest redrives and discards with their progress, or work on one of them, or cancel one."""
    from orderstream.console.dead_letters import acts
    from orderstream.dead_letters import jobs

    with _store() as (settings, connection):
        if cancel_job is not None and acts.cancel(connection, cancel_job, actor=_actor()) is None:
            raise click.ClickException("there is no such job")
        if run_job is not None:
            job = jobs.job(connection, run_job)
            if job is None:
                raise click.ClickException("there is no such job")
            sys.exit(_run(settings, connection, job, as_json=False))
        for job in reversed(jobs.jobs(connection, limit)):
            click.echo(_line(job))


def _count_and_run(kind: "Kind", selection: "Selection", given: dict[str, Any], *, is_real: bool) -> int:
    """Count the letters, and start the job if it is confirmed. Return the exit code."""
    from msgspec import structs

    from orderstream.console.dead_letters import acts
    from orderstream.dead_letters import jobs
    from orderstream.dead_letters.jobs import JobRefusedError

    with _index() as (settings, connection):
        counted = jobs.count(connection, kind, selection)
        if not is_real:
            if given["as_json"]:
                _print_json({"dryRun": True, **_members(counted), "confirm": counted.confirm})
            else:
                _print_count(kind, counted)
            return 0
        confirm = structs.replace(counted.confirm, count=given["expected"] or counted.count)
        if not counted.count:
            raise click.ClickException(f"there is no letter to {kind}; {counted.skipped.total} were skipped")
        try:
            note, rate = given["note"], given["rate"]
            job = acts.start(connection, kind, selection, confirm, actor=_actor(), note=note, rate=rate)
        except JobRefusedError as error:
            raise click.ClickException(str(error)) from None
        return _run(settings, connection, job, as_json=given["as_json"])


def _run(settings: "Settings", connection: "Connection", job: "Job", *, as_json: bool) -> int:
    """Work on a job until it ends, and show its progress. Ctrl-C cancels it. Return the exit code."""
    from orderstream.console.dead_letters import acts
    from orderstream.dead_letters.runner import JobRunner

    runner = JobRunner(settings, settings.postgres_url, job.id)
    worker = threading.Thread(target=runner.run, daemon=True)
    worker.start()
    while not job.is_finished:
        try:
            threading.Event().wait(POLL_SECONDS)
            job = _progress(connection, job)
        except KeyboardInterrupt:
            if job.cancel_at is not None:
                click.echo(f"\njob {job.id} is not finished: orderstream dlq jobs --run {job.id}", err=True)
                return EXIT_CANCELLED
            click.echo("\ncancelling; letters that are being sent are finished first", err=True)
            job = acts.cancel(connection, job.id, actor=_actor()) or job
    runner.stop()
    worker.join()
    if sys.stderr.isatty():
        click.echo("", err=True)
    if as_json:
        _print_json({"dryRun": False, "job": job})
    else:
        click.echo(_line(job))
    if job.state == "cancelled":
        return EXIT_CANCELLED
    return EXIT_NOT_ALL if job.refused or job.gone else 0


def _progress(connection: "Connection", job: "Job") -> "Job":
    """Return the job as it is now, and show it on a terminal."""
    from orderstream.dead_letters import jobs

    now = jobs.job(connection, job.id)
    assert now is not None
    if sys.stderr.isatty():
        problem = f"  {now.problem:.60}" if now.problem else ""
        click.echo(f"\r\x1b[K{now.done + now.refused + now.gone} of {now.letters}{problem}", nl=False, err=True)
    return now


@contextlib.contextmanager
def _store() -> "Iterator[tuple[Settings, Connection]]":
    """Connect to PostgreSQL. The expected errors are printed in one line."""
    import psycopg
    from confluent_kafka import KafkaException

    from orderstream.kafka.errors import KafkaRefusedError
    from orderstream.postgres.connect import connect

    settings = stack_settings()
    with (
        plain_errors(psycopg.Error, KafkaException, KafkaRefusedError),
        connect(settings.postgres_url, "dlq") as connection,
    ):
        yield settings, connection


@contextlib.contextmanager
def _index() -> "Iterator[tuple[Settings, Connection]]":
    """Bring the index up to date, and connect to PostgreSQL."""
    from orderstream.dead_letters.tailer import Tailer

    with _store() as (settings, connection):
        tailer = Tailer(settings, settings.postgres_url)
        try:
            if not tailer.catch_up(CATCH_UP_SECONDS):
                click.echo("Warning: there are more dead letters than could be read in a minute", err=True)
        finally:
            tailer.close()
        yield settings, connection


def _filter(service: str | None, filters: dict[str, Any]) -> "Filter":
    from datetime import UTC

    from orderstream.dead_letters.index import Filter

    times = {name: cast("datetime", filters[name]).replace(tzinfo=UTC) for name in ("since", "until") if filters[name]}
    return Filter(service=service, **{**filters, **times})


def _selection(
    service: str | None, filters: dict[str, Any], chosen: tuple[str, ...], *, every: bool, again: bool
) -> "Selection":
    from orderstream.dead_letters.index import CHOSEN_MAX
    from orderstream.dead_letters.jobs import Selection

    is_filtered = service is not None or any(value is not None for value in filters.values())
    if bool(chosen) + is_filtered + every != 1:
        raise click.UsageError("choose letters with filters, with --letter, or with --all")
    if len(chosen) > CHOSEN_MAX:
        raise click.UsageError(f"--letter can be given {CHOSEN_MAX} times at most")
    if chosen:
        return Selection(letters=tuple(map(_place, chosen)), again=again)
    return Selection(_filter(service, filters), again=again)


def _place(text: str) -> "Place":
    from orderstream.dead_letters.index import Place

    found = _LETTER.fullmatch(text)
    if found is None:
        raise click.UsageError(f"{text!r} is not SERVICE/PARTITION@OFFSET")
    return Place(found[1], int(found[2]), int(found[3]))


def _print_count(kind: str, counted: "Count") -> None:
    click.echo(f"{counted.count} letters to {kind}, counted at {counted.counted_at.isoformat(timespec='milliseconds')}")
    if counted.more:
        click.echo("more letters match: start a second job for the rest")
    for name, number in _members(counted.skipped).items():
        if number:
            click.echo(f"{number} skipped: {name}")
    for letter in counted.sample:
        click.echo(f"  {letter.service} {letter.partition} {letter.offset}  {letter.reason}  {letter.error}")
    click.echo(f"Nothing has changed. To {kind} them, add --note and --count {counted.count}", err=True)


def _line(job: "Job") -> str:
    from orderstream.dead_letters.printable import in_one_line

    twice = f", {job.sent_twice} may have been sent twice" if job.sent_twice else ""
    problem = f", {job.problem}" if job.problem else ""
    return in_one_line(
        f"job {job.id} {job.kind} {job.state}: {job.done} of {job.letters} done, {job.refused} refused, {job.gone} gone"
        f"{twice}{problem}  {job.actor}: {job.note}"
    )


def _members(value: Any) -> dict[str, Any]:
    """Return the members of a struct by their names in JSON."""
    return {
        shown: getattr(value, name)
        for name, shown in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
    }


def _print_json(value: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _actor() -> str:
    return f"{getpass.getuser()} (cli)"
