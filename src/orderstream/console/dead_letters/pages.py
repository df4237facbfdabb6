"""The pages for dead letters: groups and letters, one letter, a dry run, and jobs with their progress."""

import asyncio
import contextlib
import json
import shlex
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orderstream.console.context import Console
from orderstream.console.dead_letters.api import Handlers, JobLettersQuery, LettersQuery
from orderstream.console.web.api import decode_query
from orderstream.console.web.pages import form_of, page_routes, seen_other
from orderstream.dead_letters.index import CHOSEN_MAX, Filter, Place
from orderstream.dead_letters.jobs import RATE_DEFAULT, RATE_MAX, Confirm, Count, Kind, Selection
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.http_server.problems import Problem

PATH = "/dead-letters"
JOBS_SHOWN = 5
REFUSED_SHOWN = 20
LETTERS_SHOWN = 20
"""Letters that a command on a page names. A page with more says so."""
STATES = ("open", "redriven", "discarded")


class _Pages:
    """The handlers of the pages."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._handlers = Handlers(console)

    def _page(self, request: Request, template: str, **values: Any) -> Response:
        return self._console.templates.page(request, f"dead_letters/{template}", **values)

    async def overview(self, request: Request) -> Response:
        """GET /dead-letters: groups first; with a filter also the letters."""
        query: LettersQuery = decode_query(request.url.query, LettersQuery)
        wanted = _filter_of(query)
        found = await self._handlers.search(wanted, query.limit, query.cursor)
        jobs = await self._handlers.jobs(JOBS_SHOWN)
        refused = await self._handlers.refused(REFUSED_SHOWN)
        filters = _query_of(wanted)
        return self._page(
            request,
            "list.html",
            found=found,
            jobs=jobs.jobs,
            refused=refused,
            filters=filters,
            groups=[(group, address(_group_filter(group, wanted))) for group in found.groups],
            services=CONSUMER_GROUPS,
            states=STATES,
            newest=address(wanted) if query.cursor else None,
            older=address(wanted, cursor=str(found.next)) if found.next else None,
            filter_json=msgspec.json.encode(wanted).decode(),
            rate=RATE_DEFAULT,
            matching=sum(group.count for group in found.groups),
            open=sum(group.open for group in found.groups),
            cli=cli(["dlq", "list"], Selection(wanted)),
        )

    async def letter(self, request: Request) -> Response:
        """GET /dead-letters/{service}/{partition}/{offset}: one letter."""
        path = dict(request.path_params)
        letter = await self._handlers.letter(path)
        place = Place(letter.service, letter.partition, letter.offset)
        selection = Selection(letters=(place,))
        kinds = ("redrive", "discard")
        return self._page(
            request,
            "letter.html",
            letter=letter,
            place_json=_places_json([place]),
            clis={kind: cli(["dlq", kind], selection) for kind in kinds},
            curls={kind: _curl(f"/api/dead-letters/{kind}", {"letters": [place]}) for kind in kinds},
        )

    async def dry_run(self, request: Request) -> Response:
        """POST /dead-letters/dry-run: count what a job would touch, and ask for the confirmation. Changes nothing."""
        form = await form_of(request)
        kind, selection = _kind_of(form), _selection_of(form)
        counted = await self._handlers.count(kind, selection)
        return self._confirmation(request, kind, selection, counted)

    def _confirmation(
        self,
        request: Request,
        kind: Kind,
        selection: Selection,
        counted: Count,
        *,
        note: str = "",
        rate: int = RATE_DEFAULT,
        problem: Problem | None = None,
    ) -> Response:
        body = msgspec.to_builtins(selection) | {"dryRun": False, "note": "why", "rate": rate}
        return self._page(
            request,
            "dry_run.html",
            status=problem.status if problem else 200,
            kind=kind,
            selection=selection,
            selection_json=msgspec.json.encode(selection).decode(),
            counted=counted,
            confirm_json=msgspec.json.encode(counted.confirm).decode(),
            back=address(selection.filter or Filter()),
            rate=rate,
            rate_max=RATE_MAX,
            note=note,
            problem=problem,
            cli=cli(["dlq", kind, "--yes", "--note", note or "why"], selection),
            curl=_curl(f"/api/dead-letters/{kind}", body | {"confirm": counted.confirm}),
        )

    async def start(self, request: Request) -> Response:
        """POST /dead-letters/jobs: start the counted job. If the count no longer holds, show the new one."""
        form = await form_of(request)
        kind, selection = _kind_of(form), _decoded(form, "selection", Selection)
        confirm, note = _decoded(form, "confirm", Confirm), form.get("reason", "")[:1_000]
        rate = _rate_of(form)
        try:
            job = await self._handlers.start(
                kind, selection, confirm, actor=request.state.visitor.actor, note=note, rate=rate
            )
        except Problem as problem:
            if problem.status not in (400, 409):
                raise
            counted = await self._handlers.count(kind, selection)
            return self._confirmation(request, kind, selection, counted, note=note, rate=rate, problem=problem)
        return seen_other(f"{PATH}/jobs/{job.id}")

    async def jobs(self, request: Request) -> Response:
        """GET /dead-letters/jobs: all jobs, newest first."""
        cursor = request.query_params.get("cursor", "")
        found = await self._handlers.jobs(50, int(cursor[:18]) if cursor.isdecimal() and cursor.isascii() else None)
        older = f"{PATH}/jobs?cursor={found.next}" if found.next else None
        return self._page(request, "jobs.html", jobs=found.jobs, older=older, newest=f"{PATH}/jobs" if cursor else None)

    async def job(self, request: Request) -> Response:
        """GET /dead-letters/jobs/{id}: the progress of a job, and what it did with its letters."""
        path = dict(request.path_params)
        query: JobLettersQuery = decode_query(request.url.query, JobLettersQuery)
        job = await self._handlers.job(path)
        letters = await self._handlers.job_letters(path, query)
        selection = msgspec.json.decode(bytes(job.filter), type=Selection)
        shown = {"state": query.state} if query.state else {}
        here = f"{PATH}/jobs/{job.id}"
        return self._page(
            request,
            "job.html",
            job=job,
            letters=letters.letters,
            filters=_query_of(selection.filter or Filter()),
            chosen=len(selection.letters or ()),
            state=query.state,
            older=f"{here}?{urlencode(shown | {'after': letters.next})}" if letters.next else None,
            newest=f"{here}?{urlencode(shown)}" if query.after else None,
            cancel_curl=_curl(f"/api/dead-letters/jobs/{job.id}/cancel", None),
        )

    async def cancel(self, request: Request) -> Response:
        """POST /dead-letters/jobs/{id}/cancel."""
        job = await self._handlers.cancel(dict(request.path_params), request.state.visitor.actor)
        return seen_other(f"{PATH}/jobs/{job.id}")


def routes(console: Console) -> list[Route]:
    """Return the routes of the pages for dead letters."""
    pages = _Pages(console)
    return page_routes(
        [
            ("GET", PATH, pages.overview),
            ("POST", f"{PATH}/dry-run", pages.dry_run),
            ("GET", f"{PATH}/jobs", pages.jobs),
            ("POST", f"{PATH}/jobs", pages.start),
            ("GET", f"{PATH}/jobs/{{id}}", pages.job),
            ("POST", f"{PATH}/jobs/{{id}}/cancel", pages.cancel),
            ("GET", f"{PATH}/{{service}}/{{partition}}/{{offset}}", pages.letter),
        ]
    )


@contextlib.asynccontextmanager
async def running(console: Console) -> AsyncIterator[None]:
    """Fill the index and work on jobs until the block ends."""
    console.dead_letters.start()
    try:
        yield
    finally:
        await asyncio.to_thread(console.dead_letters.stop)


def address(wanted: Filter, **more: str) -> str:
    """Return the address of the page with a filter."""
    query = urlencode(_query_of(wanted) | more)
    return f"{PATH}?{query}" if query else PATH


def _curl(path: str, body: Any) -> str:
    """Return the same request for a shell. `orderstream env` sets CONSOLE_URL."""
    lines = [f'curl -X POST "$CONSOLE_URL{path}"', '-H "Authorization: Bearer $(cat .orderstream/operator-token)"']
    if body is not None:
        text = json.dumps(msgspec.to_builtins(body), ensure_ascii=True)
        lines += ['-H "content-type: application/json"', f"-d {shlex.quote(text)}"]
    return " \\\n  ".join(lines)


def cli(words: list[str], selection: Selection) -> str:
    """Return the command that does the same."""
    command = ["orderstream", *words]
    options = _query_of(selection.filter or Filter())
    if words[-1] == "list" and "service" in options:
        command.append(options.pop("service"))
    for place in (selection.letters or ())[:LETTERS_SHOWN]:
        command += ["--letter", f"{place.service}/{place.partition}@{place.offset}"]
    for name, value in options.items():
        command += [f"--{'order' if name == 'orderId' else name}", value]
    if words[-1] != "list" and not options and not selection.letters:
        command.append("--all")
    if selection.again:
        command.append("--again")
    return shlex.join(command)


def _query_of(wanted: Filter) -> dict[str, str]:
    return {name: str(value) for name, value in msgspec.to_builtins(wanted).items()}


def _filter_of(query: LettersQuery) -> Filter:
    """Return the filter alone. Times of a form have no zone: they are UTC."""
    values = {name: getattr(query, name) for name in Filter.__struct_fields__}
    for name in ("since", "until"):
        moment: datetime | None = values[name]
        if moment is not None and moment.tzinfo is None:
            values[name] = moment.replace(tzinfo=UTC)
    return Filter(**values)


def _group_filter(group: Any, wanted: Filter) -> Filter:
    return msgspec.structs.replace(
        wanted, service=group.service, reason=group.reason, topic=group.topic, error=group.error
    )


def _places_json(places: list[Place]) -> str:
    return msgspec.json.encode(places).decode()


def _kind_of(form: dict[str, str]) -> Kind:
    kind = form.get("kind")
    if kind not in ("redrive", "discard"):
        raise Problem(400, "invalid-form", "The form is not valid", "Choose redrive or discard.")
    return cast("Kind", kind)


def _selection_of(form: dict[str, str]) -> Selection:
    """Return what the form means: the letters that are chosen, or all that match its filter."""
    again = form.get("again") == "yes"
    if form.get("scope") == "matching":
        return Selection(_decoded(form, "filter", Filter), again=again)
    texts = [text for text in form.get("letter", "").split("\n") if text]
    if not texts:
        detail = "Choose at least one letter, or choose all letters that match."
        raise Problem(400, "nothing-chosen", "No letter is chosen", detail)
    return Selection(letters=tuple(place_of_text(text) for text in texts[:CHOSEN_MAX]), again=again)


def place_of_text(text: str) -> Place:
    """Return the position in a text like `payment-worker/2@17`. Raises Problem 400."""
    service, _, rest = text.partition("/")
    partition, _, offset = rest.partition("@")
    if not all(part.isascii() and part.isdecimal() and len(part) < 19 for part in (partition, offset)):
        raise Problem(400, "invalid-form", "The form is not valid", f"{text[:100]!r} is not a position of a letter.")
    return Place(service, int(partition), int(offset))


def _decoded(form: dict[str, str], name: str, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(form.get(name, ""), type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Problem(400, "invalid-form", "The form is not valid", f"{name}: {error}") from None


def _rate_of(form: dict[str, str]) -> int:
    text = form.get("rate", "")
    rate = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if not 1 <= rate <= RATE_MAX:
        detail = f"The rate is a number from 1 to {RATE_MAX:,}."
        raise Problem(400, "invalid-form", "The form is not valid", detail)
    return rate
