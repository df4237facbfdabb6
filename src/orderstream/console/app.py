"""The console: the operator's API and pages. This module wires it together. Orders do not depend on this process."""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from http.server import ThreadingHTTPServer

import uvloop
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from orderstream.console import local_stack
from orderstream.console.areas import OPERATIONS, PAGES, RUNNING
from orderstream.console.context import Console
from orderstream.console.stores import Stores
from orderstream.console.traces import receiver
from orderstream.console.web import api, openapi
from orderstream.console.web.access import Access
from orderstream.console.web.api import Operation
from orderstream.console.web.guard import NO_STORE, SECURITY_HEADERS, Guard, Hosts, now
from orderstream.console.web.pages import StaticFiles, Templates, not_found
from orderstream.console.web.sessions import SessionPages
from orderstream.http_server.problems import method_not_allowed
from orderstream.http_server.server import Server, allow_connections, listen
from orderstream.http_server.server_state import Limits
from orderstream.process.drain import limit_drain
from orderstream.process.liveness import exit_when_stuck
from orderstream.process.pages import serve_pages
from orderstream.settings import Settings
from orderstream.telemetry import logs
from orderstream.telemetry.tracing import Tracer

SERVICE = "console"
CONNECTIONS_MAX = 500
REQUEST_SECONDS = 10.0
"""Time that a client has to send a request, and to read a response."""
BEAT_SECONDS = 1.0
BEAT_LIMIT_SECONDS = 30.0
EXIT_FAILED = 1


def run(settings: Settings, operator_token: str) -> int:
    """Serve until SIGTERM, then finish the requests in progress. Return the exit code."""
    logs.configure(SERVICE, settings)
    try:
        listener = listen(settings.console_host, settings.console_port, shared=False)
    except OSError as error:
        logs.get().error("cannot_listen", host=settings.console_host, port=settings.console_port, error=str(error))
        return EXIT_FAILED
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, operator_token, listener))
    return 0


async def serve(settings: Settings, operator_token: str, listener: socket.socket) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT."""
    async with AsyncExitStack() as stack:
        if settings.console_postgres_url is None:
            logs.get().warning("console_has_the_rights_of_postgres_url", help="set CONSOLE_POSTGRES_URL")
        local = local_stack.find(settings)
        stores = stack.enter_context(Stores(settings))
        static = StaticFiles()
        templates = Templates(static, {"is_local": local is not None, "trace_ui_url": settings.trace_ui_url})
        console = Console(settings, stores, templates, local)
        stack.callback(console.close)
        for running in RUNNING:
            await stack.enter_async_context(running(console))
        access = Access(operator_token, settings.console_read_token, now, settings.console_port)
        http = Server(
            application(console, static, access),
            Tracer(None, 0),
            Limits(
                connections=allow_connections(CONNECTIONS_MAX),
                connections_per_peer=CONNECTIONS_MAX,
                request_timeout_seconds=REQUEST_SECONDS,
            ),
            on_stop=lambda: limit_drain(settings.drain_timeout_seconds),
            drain_timeout_seconds=settings.drain_timeout_seconds / 2,
            # For the answers that the server gives itself. The guard adds them to all others.
            headers=(*SECURITY_HEADERS, NO_STORE),
        )
        pages = _serve_process_pages(settings)
        stack.callback(pages.server_close)
        stack.push_async_callback(asyncio.to_thread, pages.shutdown)
        port = listener.getsockname()[1]
        logs.get().info("started", host=settings.console_host, port=port, pages_port=pages.server_port)
        await http.serve(listener)
    logs.get().info("stopped")


def application(console: Console, static: StaticFiles, access: Access) -> Guard:
    """Return the whole application: the guard, and behind it all pages and operations."""
    inner = _Inner()
    guard = Guard(inner, access, allowed_hosts(console.settings), console.templates.problem)
    inner.app = _router(routes(console, static, access, guard))
    return guard


def routes(console: Console, static: StaticFiles, access: Access, guard: Guard) -> list[BaseRoute]:
    """Return all routes behind the guard."""
    operations = [operation for area in OPERATIONS for operation in area(console)]
    return [
        *SessionPages(access, console.templates, guard).routes(),
        Route("/static/{name}", static.serve),
        Route(receiver.PATH, receiver.endpoint(console, access)),
        *(route for area in PAGES for route in area(console)),
        *_api_routes(operations),
    ]


class _Inner:
    """The application behind the guard. The pages of sessions need the guard, so that it is set after the guard."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def _api_routes(operations: Sequence[Operation]) -> list[BaseRoute]:
    async def described(_request: Request) -> Response:
        return Response(api.encode(openapi.document(operations)), media_type="application/json")

    return [Route("/api/openapi.json", described), *api.routes(operations)]


def _router(routes: Sequence[BaseRoute]) -> ASGIApp:
    """Return the router. Its own errors become problems."""

    async def missing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise not_found("page")

    router = Router(routes, redirect_slashes=False, default=missing)

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # With an application in its scope, the router raises an error instead of answering 405 as text.
            await router({**scope, "app": router}, receive, send)
        except HTTPException as error:
            allowed = (error.headers or {}).get("Allow", "")
            raise method_not_allowed(allowed.split(", ")) from error

    return route


def allowed_hosts(settings: Settings) -> Hosts:
    """Return the host names under which the console may be reached."""
    names = {"127.0.0.1", "localhost", "::1", *settings.console_hostnames}
    try:
        if not ipaddress.ip_address(settings.console_host).is_unspecified:
            names.add(settings.console_host)
    except ValueError:
        names.add(settings.console_host)
    return Hosts(frozenset(name.lower() for name in names))


def _serve_process_pages(settings: Settings) -> ThreadingHTTPServer:
    """Serve /livez, /readyz and /metrics of this process, and end the process when its event loop is stuck."""
    loop = asyncio.get_running_loop()
    beat = time.monotonic()

    def note() -> None:
        nonlocal beat
        beat = time.monotonic()
        loop.call_later(BEAT_SECONDS, note)

    note()

    def live() -> str | None:
        return None if time.monotonic() - beat < BEAT_LIMIT_SECONDS else "the event loop is stuck"

    exit_when_stuck(lambda: beat, BEAT_LIMIT_SECONDS)
    return serve_pages(settings.console_host, settings.metrics_port, live, lambda: None)
