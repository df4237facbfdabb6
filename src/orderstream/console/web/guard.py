"""Stands before every page and operation: checks the host, the visitor and the origin, and adds the security headers.

Each check has its own answer, as a problem document for `/api` and as a page for a browser. A request that passes has a
`Visitor` in `request.state.visitor`.
"""

import re
import time
from collections.abc import Callable, Mapping
from urllib.parse import unquote, urlsplit

from msgspec import Struct
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orderstream.console.web.access import NAME_MAX_CHARACTERS, Access, Visitor
from orderstream.console.web.limits import RequestLimits, too_many
from orderstream.console.web.pages import ELSEWHERE
from orderstream.http_server.problems import Problem
from orderstream.telemetry import logs

NAME_COOKIE = "orderstream_name"
NAME_HEADER = "operator-name"
SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
NO_STORE = (b"cache-control", b"no-store")
PUBLIC = ("/enter", "/static/")
SPANS = "/v1/traces"
_SAFE = ("GET", "HEAD")
_OWN_SESSION = ("/leave", "/name")
"""They change the visitor's own cookies only, so that a reader may send them too."""
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::[0-9]{1,5})?", re.ASCII)

ProblemPage = Callable[[Scope, Problem, Visitor | None], tuple[bytes, list[tuple[bytes, bytes]]]]
"""Renders a problem: the body and its headers."""


class Hosts(Struct, frozen=True):
    """The host names under which a browser may reach the console. Another name is a DNS rebinding.

    The port may be any: a proxy or a tunnel may have another one than the console.
    """

    names: frozenset[str]

    def allows(self, host: str) -> bool:
        """Return whether a Host field names this console."""
        match = _HOST.fullmatch(host.lower())
        return match is not None and (match[1] or match[2]).rstrip(".") in self.names


class Guard:
    """An ASGI application that passes allowed requests on to another."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        hosts: Hosts,
        problem_page: ProblemPage,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._access = access
        self._hosts = hosts
        self._problem_page = problem_page
        self._limits = RequestLimits(clock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                fields = list(message["headers"])
                names = {name for name, _ in fields}
                fields += [field for field in (*SECURITY_HEADERS, NO_STORE) if field[0] not in names]
                message = {**message, "headers": fields}
            await send(message)

        visitor = None
        try:
            visitor = self._visitor(scope, headers)
            scope.setdefault("state", {})["visitor"] = visitor
            self._check(scope, headers, visitor)
            await self._app(scope, receive, guarded)
        except Problem as problem:
            if started:
                raise
            await self._respond(scope, problem, visitor, guarded)
        except Exception as error:  # noqa: BLE001 - a bug in one page must not end the process
            logs.get().error("request_failed", path=scope["path"][:200], exc_info=error)
            if not started:
                detail = "The console failed to answer. Its log has the error."
                await self._respond(scope, Problem(500, "internal-error", "Internal error", detail), visitor, guarded)

    def _visitor(self, scope: Scope, headers: Mapping[str, str]) -> Visitor | None:
        """Return the visitor of a request. Raises Problem 421 for a foreign host, 400, 401 for a wrong token, 429."""
        if not self._hosts.allows(headers.get("host", "")):
            detail = "The console does not serve this host name. Add it to CONSOLE_HOSTNAMES."
            raise Problem(421, "misdirected-request", "Unknown host name", detail)
        if "%00" in scope["path"] or b"%00" in scope["query_string"]:
            raise Problem(400, "malformed-request", "The request is malformed", "No text may contain NUL.")
        cookies = cookies_of(headers.get("cookie", ""))
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme and scope["path"] != SPANS:
            role = self._access.role_of(token.strip()) if scheme.lower() == "bearer" else None
            if role is None:
                raise self.refused()
            self._limits.take(f"token of the {role}")
        else:
            session = cookies.get(self._access.session_cookie, "")
            role = self._access.session_role(session)
            self._limits.take("spans" if scope["path"] == SPANS else session if role is not None else None)
        name = headers.get(NAME_HEADER) or unquote(cookies.get(NAME_COOKIE, ""))
        return None if role is None else Visitor(role, _name(name) or role)

    def refused(self) -> Problem:
        """Return the problem of a wrong token: 401, or 429 after many of them."""
        if not self._limits.may_refuse():
            return too_many()
        logs.get().warning("token_refused")
        return _unauthorized("The token is wrong.")

    def _check(self, scope: Scope, headers: Mapping[str, str], visitor: Visitor | None) -> None:
        """Raise Problem if this visitor may not send this request."""
        path, method = scope["path"], scope["method"]
        if path == SPANS:
            return
        if method not in _SAFE:
            _check_origin(headers)
        if path == PUBLIC[0] or path.startswith(PUBLIC[1]):
            return
        if visitor is None and method in _SAFE and _comes_from_elsewhere(headers):
            raise Problem(401, ELSEWHERE, "Opening the console", "A link of another site led here.")
        if visitor is None:
            raise _unauthorized("Send the operator's token, or open the address that `orderstream up` printed.")
        if method not in _SAFE and path not in _OWN_SESSION and not visitor.may_act:
            detail = "This token may only read."
            raise Problem(403, "read-only", "Not allowed", detail)

    async def _respond(self, scope: Scope, problem: Problem, visitor: Visitor | None, send: Send) -> None:
        body, headers = self._problem_page(scope, problem, visitor)
        fields = [*headers, *problem.headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": problem.status, "headers": fields})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _comes_from_elsewhere(headers: Mapping[str, str]) -> bool:
    """Return whether a browser follows a link of another site. It then leaves out a SameSite=Strict cookie.

    The answer is a page that opens the same address again. That request begins here and has the cookie.
    """
    navigates = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return navigates and headers.get("sec-fetch-site") in ("cross-site", "same-site")


def _check_origin(headers: Mapping[str, str]) -> None:
    """Raise Problem 403 if a browser sends the request from a page of another origin.

    A page of another port of this machine is `same-site`, so that its requests have our cookie. It is foreign too.
    """
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    foreign = site is not None and site not in ("same-origin", "none")
    if origin is not None:
        foreign = foreign or not _same_host(origin, headers.get("host", ""))
    if foreign:
        raise Problem(403, "foreign-origin", "Not allowed", "A page of another origin sent this request.")


def _same_host(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        return False


def cookies_of(field: str) -> dict[str, str]:
    """Return the cookies of a request. The first one of a name counts. Python's own parser takes quadratic time."""
    found: dict[str, str] = {}
    for pair in field.split(";"):
        name, separator, value = pair.strip().partition("=")
        if separator:
            found.setdefault(name, value)
    return found


def _name(text: str) -> str:
    """Return what a visitor calls itself, in printable characters."""
    return "".join(character for character in text if character.isprintable()).strip()[:NAME_MAX_CHARACTERS]


def _unauthorized(detail: str) -> Problem:
    return Problem(401, "unauthorized", "Not logged in", detail, headers=[(b"www-authenticate", b"Bearer")])


def now() -> float:
    """Return Unix time in seconds. Sessions end by it."""
    return time.time()
