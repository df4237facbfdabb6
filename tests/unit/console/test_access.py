"""Access to the console: tokens, sessions, hosts, origins, roles, rates and headers, on the whole application."""

import asyncio
import hmac
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from orderstream.console import app, areas
from orderstream.console.app import application, routes
from orderstream.console.context import Console
from orderstream.console.stores import Stores
from orderstream.console.web import access as access_module
from orderstream.console.web import api
from orderstream.console.web.access import SESSION_SECONDS, Access
from orderstream.console.web.api import Call, Operation
from orderstream.console.web.guard import SECURITY_HEADERS, Guard, Hosts, cookies_of
from orderstream.console.web.limits import (
    ALL_PER_SECOND,
    REFUSED_PER_SECOND,
    UNKNOWN_PER_SECOND,
    VISITOR_PER_SECOND,
    VISITORS_MAX,
    RequestLimits,
)
from orderstream.console.web.pages import StaticFiles, Templates, form_of, local_address, page_routes, seen_other
from orderstream.http_server.problems import Problem
from orderstream.settings import Settings
from tests.support.asgi import Answer, call

OPERATOR, READER = "the-token-of-the-operator", "the-token-of-the-reader"
HOST = "127.0.0.1:3100"
BEGAN = 1_800_000_000.0
STATIC = StaticFiles()


class Acted(Struct, rename="camel"):
    """What the operation of these tests answers."""

    said: str


class Act(Struct, rename="camel", forbid_unknown_fields=True):
    """What it reads."""

    said: Any = ""


class Site:
    """The application of the console with a page and an operation of its own, and clocks of its own."""

    def __init__(self, console: Console, **settings: object) -> None:
        self.acts: list[str] = []
        self.now = BEGAN
        self.console = console
        console.settings = Settings.model_validate(settings)
        self.access = Access(OPERATOR, READER, lambda: self.now, 3100)
        self.app = application(console, STATIC, self.access)
        self.routes = routes(console, STATIC, self.access, self.app)

    def send(self, method: str, path: str, body: bytes = b"", /, **headers: str) -> Answer:
        """Send a request. The names of headers have `_` for `-`."""
        given = {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items()}
        return asyncio.run(call(self.app, method, path, [body], given))

    def form(self, path: str, fields: dict[str, str], /, **headers: str) -> Answer:
        """Send a form as a page of the console does."""
        given = {"content_type": "application/x-www-form-urlencoded", "origin": f"http://{HOST}"} | headers
        return self.send("POST", path, urlencode(fields).encode(), **given)

    def session(self, token: str = OPERATOR) -> str:
        """Log in, and return the Cookie field of the session."""
        answer = self.form("/enter", {"token": token})
        assert answer.status == 200
        return answer.headers["set-cookie"].partition(";")[0]


@pytest.fixture(scope="module")
def console() -> Iterator[Console]:
    """The parts of the console, which reach no server. They keep the compiled templates for all tests."""
    settings = Settings.model_validate({})
    console = Console(settings, Stores(settings), Templates(STATIC, {"trace_ui_url": None}), None)
    yield console
    console.close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, console: Console) -> Site:
    """The application, with a page `/probe` and an operation `/api/probe` that each note what they did."""
    holder: list[Site] = []

    async def handle(given: Call) -> Acted:
        holder[0].acts.append(given.visitor.actor)
        return Acted(str(given.body.said))

    async def show(_request: Request) -> Response:
        return Response("shown")

    async def submit(request: Request) -> Response:
        holder[0].acts.append((await form_of(request)).get("said", ""))
        return seen_other("/probe")

    operation = Operation("POST", "/api/probe/{name}", "Act.", Acted, handle, body=Act, acts=True)
    pages = page_routes([("GET", "/probe", show), ("POST", "/probe", submit)])
    monkeypatch.setattr(app, "OPERATIONS", (*areas.OPERATIONS, lambda _: [operation]))
    monkeypatch.setattr(app, "PAGES", (*areas.PAGES, lambda _: pages))
    holder.append(Site(console))
    return holder[0]


JSON = {"content_type": "application/json"}
BEARER = {"authorization": f"Bearer {OPERATOR}"}
READ_BEARER = {"authorization": f"Bearer {READER}"}


# Tokens


@pytest.mark.parametrize(
    "field", ["", "Bearer", "Bearer ", f"Basic {OPERATOR}", f"Bearer {OPERATOR}x", "Bearer \xff", OPERATOR]
)
def test_nothing_is_shown_without_the_token(site: Site, field: str) -> None:
    headers = {"authorization": field} if field else {}
    for path in ("/probe", "/api/openapi.json", "/", "/nowhere"):
        answer = site.send("GET", path, **headers)
        assert (path, answer.status, answer.headers["www-authenticate"]) == (path, 401, "Bearer")
        assert b"shown" not in answer.body
    refused = site.send("POST", "/api/probe/x", b"{}", **JSON, **headers)
    assert (refused.status, site.acts) == (401 if not field else refused.status, [])
    assert refused.status in (401, 429)


def test_the_tokens_open_the_console(site: Site) -> None:
    assert site.send("GET", "/probe", **BEARER).body == b"shown"
    assert site.send("GET", "/probe", **READ_BEARER).body == b"shown"
    assert site.send("POST", "/api/probe/x", b"{}", **JSON, **BEARER).status == 200
    assert site.send("GET", "/probe", authorization=f"bearer  {OPERATOR} ").status == 200
    assert site.acts == ["operator (operator)"]


def test_tokens_and_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(given: bytes, expected: bytes) -> bool:
        compared.append((given, expected))
        return hmac.compare_digest(given, expected)

    class Recording:
        compare_digest = staticmethod(compare)
        new = staticmethod(hmac.new)

    monkeypatch.setattr(access_module, "hmac", Recording)
    access = Access(OPERATOR, READER, lambda: BEGAN)
    assert access.role_of("a wrong token") is None
    assert [expected for _, expected in compared] == [OPERATOR.encode(), READER.encode()]
    compared.clear()
    assert access.role_of(OPERATOR) == "operator"
    assert len(compared) == 2, "the search does not end at the first token that fits"
    compared.clear()
    assert access.session_role(access.new_session("reader")) == "reader"
    assert not access.may_send_spans("a wrong token")
    assert len(compared) == 2


# Sessions


def test_a_session_begins_with_a_cookie_that_only_the_console_can_use(site: Site) -> None:
    for answer in (site.send("GET", f"/enter?token={OPERATOR}"), site.form("/enter", {"token": OPERATOR})):
        attributes = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/", f"max-age={SESSION_SECONDS}"} <= attributes
        assert not any(part.startswith("domain") for part in attributes)
        assert OPERATOR not in "".join(answer.headers.values())
        assert OPERATOR.encode() not in answer.body
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
    cookie = site.session()
    assert site.send("GET", "/probe", cookie=cookie).body == b"shown"
    assert site.form("/probe", {"said": "x"}, cookie=cookie).status == 303


def test_behind_tls_the_cookie_is_never_sent_without_it(site: Site) -> None:
    assert "secure" not in site.form("/enter", {"token": OPERATOR}).headers["set-cookie"].lower()
    behind = site.form("/enter", {"token": OPERATOR}, x_forwarded_proto="https")
    assert "secure" in behind.headers["set-cookie"].lower()


def test_the_address_with_the_token_goes_on_without_it(site: Site) -> None:
    """The page goes on by itself, and not by a redirect: a redirect from another site would leave out the cookie."""
    answer = site.send("GET", f"/enter?token={OPERATOR}", sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    assert answer.status == 200
    assert b'http-equiv="refresh" content="0; url=/"' in answer.body


def test_a_link_of_another_site_opens_the_page_with_the_session(site: Site) -> None:
    """A browser leaves out the cookie of such a request. The answer makes it send the request again, from here."""
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    away = site.send("GET", "/probe?status=FAILED&q=%3Cb%3E", **link)
    assert (away.status, b"shown" in away.body) == (401, False)
    assert b'content="0; url=/probe?status=FAILED&amp;q=%3Cb%3E"' in away.body
    again = site.send("GET", "/probe", **{**link, "sec_fetch_site": "same-origin"})
    assert (again.status, b"refresh" in again.body) == (401, False), "without a session there is no loop"
    for other in ({"sec_fetch_dest": "iframe"}, {"sec_fetch_mode": "no-cors"}):
        assert b"refresh" not in site.send("GET", "/probe", **{**link, **other}).body
    assert site.send("GET", "//evil.example/x", **link).body.count(b"evil.example") == 0


def test_the_log_in_goes_on_to_the_page_that_was_asked_for(site: Site) -> None:
    form = site.send("GET", "/probe?status=FAILED")
    assert b'name="next" value="/probe?status=FAILED"' in form.body
    entered = site.form("/enter", {"token": OPERATOR, "next": "/probe?status=FAILED"})
    assert b'url=/probe?status=FAILED"' in entered.body


@pytest.mark.parametrize(
    "address",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:x",
        "",
        "x",
        "/a b",
        "/a\n",
        "/\t/x",
        "/enter?x",
    ],
)
def test_no_address_leads_away_from_the_console(site: Site, address: str) -> None:
    assert local_address(address) == "/"
    assert b'url=/"' in site.form("/enter", {"token": OPERATOR, "next": address}).body
    assert b'url=/"' in site.send("GET", f"/enter?token={OPERATOR}&next={quote(address)}").body


def test_a_session_survives_a_restart_and_another_replica(site: Site) -> None:
    cookie = site.session()
    restarted = Access(OPERATOR, READER, lambda: BEGAN + 60, 3100)
    assert restarted.session_role(cookie.partition("=")[2]) == "operator"


def test_a_session_ends_with_its_time_and_with_its_token(site: Site) -> None:
    operators, readers = site.session().partition("=")[2], site.session(READER).partition("=")[2]
    assert Access("another-token-of-an-operator", READER, lambda: BEGAN).session_role(operators) is None
    assert Access("another-token-of-an-operator", READER, lambda: BEGAN).session_role(readers) is None
    assert Access(OPERATOR, "another-token-of-readers", lambda: BEGAN).session_role(readers) is None
    assert Access(OPERATOR, None, lambda: BEGAN).session_role(readers) is None
    assert Access(OPERATOR, "another-token-of-readers", lambda: BEGAN).session_role(operators) == "operator"
    cookie = site.session()
    site.now = BEGAN + SESSION_SECONDS - 1
    assert site.send("GET", "/probe", cookie=cookie).status == 200
    site.now = BEGAN + SESSION_SECONDS
    assert site.send("GET", "/probe", cookie=cookie).status == 401
    site.now = BEGAN - 3_600
    assert site.send("GET", "/probe", cookie=cookie).status == 401, "it begins in the future"


def test_a_forged_session_is_refused(site: Site) -> None:
    name, _, value = site.session(READER).partition("=")
    role, began, nonce, signature = value.split(".")
    forged = [
        f"operator.{began}.{nonce}.{signature}",
        f"{role}.{int(began) + 1}.{nonce}.{signature}",
        f"{role}.{began}.{nonce}x.{signature}",
        f"{role}.{began}.{nonce}.{signature[:-1]}",
        f"{role}.{began}.{nonce}.",
        f"{role}.{'9' * 5_000}.{nonce}.{signature}",
        f"admin.{began}.{nonce}.{signature}",
        "...",
        "",
        "\xff\xfe",
    ]
    for cookie in forged:
        assert site.send("GET", "/probe", cookie=f"{name}={cookie}").status == 401, cookie
    assert site.send("GET", "/probe", cookie=f"orderstream_session_9={value}").status == 401


def test_leaving_removes_the_cookie(site: Site) -> None:
    for token in (OPERATOR, READER):
        cookie = site.session(token)
        answer = site.form("/leave", {}, cookie=cookie)
        assert (answer.status, answer.headers["location"]) == (303, "/enter")
        assert answer.headers["set-cookie"].startswith('orderstream_session_3100=""')


def test_a_hostile_cookie_field_takes_linear_time() -> None:
    hostile = 'a="' + "\\" * 60_000
    assert cookies_of(hostile) == {"a": '"' + "\\" * 60_000}
    assert cookies_of("a=1; a=2;b ; =x; c=d=e") == {"a": "1", "": "x", "c": "d=e"}


def test_a_name_is_printable_and_short(site: Site) -> None:
    site.send("POST", "/api/probe/x", b"{}", **JSON, **BEARER, operator_name="Ada\x01 <b>\u00ad" + "x" * 200)
    (actor,) = site.acts
    assert actor == f"{('Ada <b>' + 'x' * 200)[:80]} (operator)"
    cookie = site.session()
    named = site.form("/name", {"name": 'a"; Path=/x\r\nset-cookie: y=1'}, cookie=cookie)
    assert "\n" not in named.headers["set-cookie"]
    assert named.headers["set-cookie"].count(";") == 4


# The read-only token


def test_a_reader_acts_neither_by_the_api_nor_by_a_form(site: Site) -> None:
    cookie = site.session(READER)
    for headers in (READ_BEARER, {"cookie": cookie}):
        by_api = site.send("POST", "/api/probe/x", b"{}", **JSON, **headers)
        assert (by_api.status, b"read-only" in by_api.body) == (403, True)
        by_form = site.form("/probe", {"said": "x"}, **headers)
        assert by_form.status == 403
    assert site.acts == []


def test_every_route_that_takes_a_post_refuses_a_reader(site: Site) -> None:
    """Walks the routes of all areas, so that a new one is covered by itself."""
    for path, methods in paths(site.routes):
        for method in methods - {"GET", "HEAD"}:
            answer = site.form(path, {}, **READ_BEARER) if method == "POST" else site.send(method, path, **READ_BEARER)
            expected = {303} if path in ("/leave", "/name") else {200} if path == "/enter" else {401, 403}
            if path == "/v1/traces":
                expected = {401}
            assert answer.status in expected, f"{method} {path}"


def paths(found: list[BaseRoute]) -> list[tuple[str, set[str]]]:
    """Return the path of every route, with values in place of its parameters, and its methods."""
    result = []
    for route in found:
        assert isinstance(route, Route)
        result.append((re.sub(r"\{[^}]*\}", "1", route.path), set(route.methods or {"GET", "HEAD"})))
    return result


# Hosts


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:3100",
        "127.0.0.1",
        "localhost:3100",
        "LOCALHOST:9",
        "[::1]:3100",
        "[::1]",
        "localhost.",
        "127.0.0.1:80",
    ],
)
def test_the_names_of_this_machine_are_served(site: Site, host: str) -> None:
    assert site.send("GET", "/probe", **BEARER, host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:3100",
            "127.0.0.1.evil.example",
            "localhost.evil.example:3100",
            "",
            ":3100",
            "[::2]",
        ),
        *(
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
            "127.0.0.1:3100@evil.example",
            "127.0.0.1:x",
            "127.0.0.1,x",
        ),
        *("127.1", "0", "2130706433", "[::ffff:127.0.0.1]", "[::1", "::1", "127.0.0.1/", "127.0.0.1#x", "0.0.0.0:3100"),
    ],
)
def test_another_host_name_is_a_dns_rebinding(site: Site, host: str) -> None:
    cookie = site.session()
    for path in ("/probe", "/enter", "/static/console.css", "/api/openapi.json", "/v1/traces"):
        for headers in (BEARER, {"cookie": cookie}):
            answer = site.send("GET", path, **{**headers, "host": host})
            assert (path, answer.status) == (path, 421)
            assert OPERATOR.encode() not in answer.body
    assert site.send("POST", "/api/probe/x", b"{}", **{**JSON, **BEARER, "host": host}).status == 421
    assert site.acts == []


def test_further_names_come_from_the_settings(console: Console) -> None:
    site = Site(console, console_hostnames="console.example,[2001:db8::1]", console_host="192.0.2.7")
    for host in ("console.example", "Console.Example:443", "[2001:DB8::1]:3100", "192.0.2.7:3100", "127.0.0.1"):
        assert site.send("GET", "/enter", host=host).status == 200, host
    assert site.send("GET", "/enter", host="other.example").status == 421
    everywhere = Site(console, console_host="0.0.0.0")
    assert everywhere.send("GET", "/enter", host="0.0.0.0:3100").status == 421, "an unspecified address names no host"
    assert Hosts(frozenset()).allows("") is False


# Origins


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:4000"},
        {"origin": f"http://{HOST}.evil.example"},
        {"origin": f"http://{HOST}@evil.example"},
        {"origin": ""},
        {"origin": "http://[::1"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "other", "origin": f"http://{HOST}"},
    ],
)
def test_no_page_of_another_origin_sends_a_post(site: Site, headers: dict[str, str]) -> None:
    cookie = site.session()
    for path, _ in [
        (path, methods) for path, methods in paths(site.routes) if "POST" in methods and path != "/v1/traces"
    ]:
        for credentials in ({"cookie": cookie}, BEARER):
            answer = site.form(path, {}, **{**credentials, **({"origin": f"http://{HOST}"} | headers)})
            assert (path, answer.status) == (path, 403)
    assert site.acts == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": f"http://{HOST}", "sec_fetch_site": "same-origin"},
        {"origin": f"http://{HOST}"},
        {"sec_fetch_site": "none"},
        {},
    ],
)
def test_the_console_itself_and_programs_send_a_post(site: Site, headers: dict[str, str]) -> None:
    assert site.send("POST", "/api/probe/x", b"{}", **JSON, **BEARER, **headers).status == 200


def test_behind_a_tls_proxy_the_origin_has_the_name_of_the_host(console: Console) -> None:
    site = Site(console, console_hostnames="console.example")
    answer = site.form("/enter", {"token": OPERATOR}, host="console.example", origin="https://console.example")
    assert answer.status == 200


# Methods


def test_no_route_acts_by_get(site: Site) -> None:
    """Each operation that acts has POST only. tests/integration/console/test_pages.py compares the tables."""
    for area in areas.OPERATIONS:
        api.check(area(site.console))
        assert all(operation.acts == (operation.method == "POST") for operation in area(site.console))
    for path, methods in paths(site.routes):
        assert methods <= {"GET", "HEAD", "POST"}, path
    with pytest.raises(ValueError, match="act by POST"):
        api.check([Operation("GET", "/api/x", "x", Acted, None, acts=True)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="act by POST"):
        api.check([Operation("POST", "/api/x", "x", Acted, None)])  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_unknown_methods_are_refused(site: Site, method: str) -> None:
    for path in ("/probe", "/api/probe/x", "/enter", "/api/openapi.json", "/static/console.css"):
        answer = site.send(method, path, **BEARER)
        assert (path, answer.status) == (path, 405)
        assert set(answer.headers["allow"].split(", ")) <= {"GET", "HEAD", "POST"}
    assert site.send(method, "/nowhere", **BEARER).status == 404
    assert site.send("GET", "/api/probe/x", **BEARER).status == 405
    assert site.acts == []


def test_head_answers_as_get_without_a_body_of_its_own(site: Site) -> None:
    assert site.send("HEAD", "/probe", **BEARER).status == 200
    missing = site.send("HEAD", "/nowhere", **BEARER)
    assert (missing.status, missing.body) == (404, b"")
    assert int(missing.headers["content-length"]) > 0


# Headers


def test_every_answer_has_the_security_headers(site: Site) -> None:
    cookie = site.session()
    answers = [
        site.send("GET", "/probe", **BEARER),
        site.send("GET", "/enter"),
        site.send("GET", f"/enter?token={OPERATOR}"),
        site.send("GET", "/static/console.css"),
        site.send("GET", "/static/nothing", **BEARER),
        site.send("GET", "/api/openapi.json", **BEARER),
        site.send("GET", "/", host="evil.example"),
        site.send("GET", "/"),
        site.send("GET", "/nowhere", cookie=cookie),
        site.send("GET", "/api/nowhere", **BEARER),
        site.send("POST", "/api/probe/x", b"{", **JSON, **BEARER),
        site.send("POST", "/api/probe/x", b"{}", **JSON, **BEARER, origin="null"),
        site.send("PUT", "/probe", **BEARER),
        site.send("GET", "/", authorization="Bearer wrong"),
        site.form("/probe", {"said": "x"}, cookie=cookie),
        site.send("GET", "/probe%00", **BEARER),
    ]
    assert {answer.status for answer in answers} >= {200, 303, 400, 401, 403, 404, 405, 421}
    for answer in answers:
        for name, value in SECURITY_HEADERS:
            if name != b"referrer-policy":
                assert answer.headers[name.decode()] == value.decode()
        assert answer.headers["referrer-policy"] in ("same-origin", "no-referrer")
        assert answer.headers["cache-control"] in ("no-store", "no-cache", "max-age=31536000, immutable")
        assert "access-control-allow-origin" not in answer.headers
    policy = dict(SECURITY_HEADERS)[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert not re.search(r"unsafe|https?:|\*|data:", policy)


def test_a_bug_in_a_page_shows_nothing_of_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret-detail")

    monkeypatch.setattr(site.app, "_app", broken)
    for path in ("/probe", "/api/openapi.json"):
        answer = site.send("GET", path, **BEARER)
        assert (answer.status, b"secret-detail" in answer.body) == (500, False)
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_wrong_token_is_logged_without_it(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.send("GET", "/", authorization="Bearer a-wrong-secret")
    site.send("GET", "/enter?token=a-wrong-secret")
    logged = capsys.readouterr()
    assert "token_refused" in logged.out + logged.err
    assert "a-wrong-secret" not in logged.out + logged.err


# Limits


def test_a_body_has_a_limit(site: Site) -> None:
    large = b'{"said": "' + b"x" * api.BODY_MAX_BYTES + b'"}'
    assert site.send("POST", "/api/probe/x", large, **JSON, **BEARER).status == 413
    assert site.form("/probe", {"said": "x" * 300_000}, **BEARER).status == 413
    assert site.form("/probe", {f"n{number}": "x" for number in range(1_001)}, **BEARER).status == 400
    assert site.acts == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"said": ' + b"[" * 100_000, 400),
        (b'{"other": 1}', 400),
        (b'{"said": "a\\u0000b"}', 400),
        (b'{"said": "a\\\\u0000b"}', 200),
        (b'{"said": "\xff"}', 400),
        (b'{"said": "\\ud800"}', 400),
        (b"", 400),
        (b"[]", 400),
    ],
)
def test_a_wrong_body_is_a_problem_and_not_a_failure(site: Site, body: bytes, status: int) -> None:
    assert site.send("POST", "/api/probe/x", body, **JSON, **BEARER).status == status
    assert len(site.acts) == (status == 200)


def test_a_body_of_another_type_is_refused(site: Site) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert site.send("POST", "/api/probe/x", b"{}", **BEARER, content_type=kind).status == 415
    assert site.send("POST", "/probe", b"said=x", **BEARER, **JSON).status == 415


@pytest.mark.parametrize("path", ["/probe%00", "/probe?a=%00", "/static/%00", "/api/probe/%ff"])
def test_nul_and_wrong_utf_8_in_an_address_are_refused(site: Site, path: str) -> None:
    method = "POST" if path.startswith("/api") else "GET"
    answer = site.send(method, path, b"{}", **JSON, **BEARER)
    assert answer.status == (404 if path == "/api/probe/%ff" else 400)
    assert site.form("/probe", {"said": "a\0b"}, **BEARER).status == 400
    assert site.acts == []


def test_many_wrong_tokens_are_answered_with_429(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.app, "_limits", RequestLimits(lambda: 0.0))
    wrong = range(int(REFUSED_PER_SECOND) + 1)
    statuses = [site.send("GET", "/", authorization=f"Bearer wrong-{number}").status for number in wrong]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    late = site.send("GET", "/enter?token=wrong")
    assert (late.status, late.headers["retry-after"]) == (429, "1")
    assert site.send("GET", "/probe", **BEARER).status == 200, "the operator still gets in"


def test_each_visitor_has_a_rate_of_its_own() -> None:
    limits = RequestLimits(lambda: 0.0)
    assert taken(limits, "a") == VISITOR_PER_SECOND
    assert taken(limits, "a", 1) == 0
    assert taken(limits, None) == UNKNOWN_PER_SECOND
    assert taken(limits, "b") == ALL_PER_SECOND - VISITOR_PER_SECOND - UNKNOWN_PER_SECOND


def test_the_visitors_that_are_counted_have_a_limit() -> None:
    clock = [0.0]
    limits = RequestLimits(lambda: clock[0])
    for number in range(VISITORS_MAX + 50):
        clock[0] += 1
        limits.take(f"{number}")
    assert len(limits._visitors) == VISITORS_MAX


def taken(limits: RequestLimits, visitor: str | None, most: int = 1_000) -> int:
    """Return how many requests of a visitor are allowed now, `most` at most."""
    for number in range(most):
        try:
            limits.take(visitor)
        except Problem as problem:
            return number if (problem.status, problem.headers) == (429, ((b"retry-after", b"1"),)) else -1
    return most


def test_a_visitor_that_sends_too_much_gets_429(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.app, "_limits", RequestLimits(lambda: 0.0))
    cookie = site.session()
    statuses = [site.send("GET", "/probe", cookie=cookie).status for _ in range(int(VISITOR_PER_SECOND) + 1)]
    assert (statuses[0], statuses[-1]) == (200, 429)
    assert site.send("GET", "/probe", **BEARER).status == 200


def test_the_guard_asks_before_the_application(site: Site) -> None:
    reached = []

    async def inner(*_: object) -> None:
        reached.append(True)

    guard = Guard(inner, site.access, Hosts(frozenset({"127.0.0.1"})), site.console.templates.problem)
    for headers in ({}, {"host": "evil.example"}, {"authorization": "Bearer wrong"}):
        asyncio.run(call(guard, "GET", "/orders", [b""], {"host": HOST} | headers))
    assert reached == []


@contextmanager
def listening() -> Iterator[int]:
    """Yield a port that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_ends_the_process_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as port:
        assert app.run(Settings.model_validate({"console_port": port}), OPERATOR) == 1
    logged = capsys.readouterr()
    assert "cannot_listen" in logged.out + logged.err
    assert OPERATOR not in logged.out + logged.err
