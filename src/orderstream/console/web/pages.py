"""Renders pages: templates with their filters, static files, forms and problems."""

import hashlib
import mimetypes
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl

import jinja2
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from orderstream.console.web import filters
from orderstream.console.web.access import Visitor
from orderstream.console.web.api import decoded, read_body
from orderstream.http_server.problems import CONTENT_TYPE, Problem

FORM_MAX_BYTES = 256 * 1024
FORM_FIELDS_MAX = 1_000
PACKAGE = "orderstream.console"
ELSEWHERE = "link-from-elsewhere"
"""The name of the problem whose page opens the same address again."""

_ADDRESS = re.compile(r"/(?![/\\])[!-\[\]-~]*")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Characters that are not visible, that change the direction of the text around them, or that no page can hold."""

Fields = list[tuple[bytes, bytes]]
PageHandler = Callable[[Request], Awaitable[Response]]


class StaticFiles:
    """The style sheet, the scripts and the images, in memory, each with a version for its address."""

    def __init__(self) -> None:
        folder = resources.files(PACKAGE).joinpath("static")
        self._content = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
        self._versions = {name: hashlib.sha256(body).hexdigest()[:12] for name, body in self._content.items()}

    def address(self, name: str) -> str:
        """Return the address of a file. It changes with its content. Raises KeyError."""
        return f"/static/{name}?v={self._versions[name]}"

    async def serve(self, request: Request) -> Response:
        """GET /static/{name}. Raises Problem 404."""
        name = request.path_params["name"]
        if name not in self._content:
            raise not_found("file")
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        is_current = request.url.query == f"v={self._versions[name]}"
        cache = "max-age=31536000, immutable" if is_current else "no-cache"
        return Response(self._content[name], media_type=kind, headers={"cache-control": cache})


class Templates:
    """Renders the templates of the console. Every value is escaped."""

    def __init__(self, static: StaticFiles, values: Mapping[str, Any]) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader(PACKAGE),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=_visible,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "time": filters.time_of_day,
            "full_time": filters.full_time,
            "iso_time": filters.iso_time,
            "clock": filters.clock,
            "since": lambda moment: filters.since(moment, _now()),
            "age": filters.age,
            "money": filters.money,
            "number": filters.number,
            "bytes": filters.size,
            "cut": filters.cut,
        }
        self._environment.globals |= {"static": static.address, "now": _now, "is_local": False, **values}

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Return a page. The template knows `visitor`, `path`, `query` and `is_fragment`, besides `values`.

        `is_fragment` means that htmx asks for a part of the page.
        """
        state = request.scope.get("state", {})
        text = self._environment.get_template(template).render(
            visitor=state.get("visitor"),
            path=request.url.path,
            query=request.url.query,
            is_fragment=is_fragment(request),
            **values,
        )
        return Response(text, status, media_type="text/html")

    def problem(self, scope: Scope, problem: Problem, visitor: Visitor | None) -> tuple[bytes, Fields]:
        """Return a problem as JSON for the API, and as a page for a browser."""
        if scope["path"].startswith(("/api", "/v1")):
            return problem.body("0" * 32), [(b"content-type", CONTENT_TYPE)]
        request = Request({**scope, "state": {"visitor": visitor}})
        asked = local_address(request.url.path + (f"?{request.url.query}" if request.url.query else ""))
        template = "problem.html"
        if problem.status == 401:
            template = "elsewhere.html" if problem.name == ELSEWHERE else "enter.html"
        page = self.page(request, template, problem.status, problem=problem, goes_on_to=asked)
        return bytes(page.body), [(b"content-type", b"text/html; charset=utf-8")]


def _now() -> datetime:
    """Return the time that a page shows as its own. Nothing is decided by it."""
    return datetime.now(UTC)


def is_fragment(request: Request) -> bool:
    """Return whether htmx asks for a part of a page."""
    return request.headers.get("hx-request") == "true"


def page_routes(routes: Sequence[tuple[str, str, PageHandler]]) -> list[Route]:
    """Return the routes of pages, each given as method, path and handler. Handlers of one path share a route."""
    by_path: dict[str, dict[str, PageHandler]] = {}
    for method, path, handler in routes:
        by_path.setdefault(path, {})[method] = handler
    return [Route(path, _endpoint(methods), methods=list(methods)) for path, methods in by_path.items()]


def _endpoint(methods: Mapping[str, PageHandler]) -> PageHandler:
    async def endpoint(request: Request) -> Response:
        request.scope["path_params"] = decoded(request.path_params)
        return await methods["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a submitted form. Values of a repeated name are joined by line feeds.

    Raises Problem 400, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Problem(415, "unsupported-media-type", "Unsupported media type", "Send the fields of a form.")
    body = await read_body(request, FORM_MAX_BYTES)
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX, errors="strict")
    except ValueError:
        raise Problem(400, "invalid-form", "The form is not valid", "The form cannot be read.") from None
    fields: dict[str, str] = {}
    if any("\0" in text for pair in pairs for text in pair):
        raise Problem(400, "invalid-form", "The form is not valid", "No text may contain NUL.")
    for name, value in pairs:
        fields[name] = f"{fields[name]}\n{value}" if name in fields else value
    return fields


def seen_other(address: str) -> Response:
    """Return the answer to a form that succeeded: the browser reads the page at `address`, a path of the console."""
    assert _ADDRESS.fullmatch(address), "an address of the console"
    return RedirectResponse(address, 303)


def local_address(text: str) -> str:
    """Return the address if it is one of the console, otherwise that of the overview. A browser then stays here."""
    return text if _ADDRESS.fullmatch(text) and not text.startswith(("/enter", "/leave")) else "/"


def _visible(value: object) -> object:
    """Return a text with its invisible characters as escapes, such as `\\u202e`. Other values stay."""
    if type(value) is not str or not _INVISIBLE.search(value):
        return value
    return _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", value)


def not_found(what: str) -> Problem:
    """404: the page or the thing does not exist."""
    return Problem(404, "not-found", "Not found", f"There is no such {what}.")
