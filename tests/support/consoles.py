"""A console of a test: the real application on the real HTTP server, in a thread of the test's process."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import httpx
import uvloop

from orderstream.console.app import application
from orderstream.console.areas import RUNNING
from orderstream.console.context import Console
from orderstream.console.local_stack import LocalStack
from orderstream.console.stores import Stores
from orderstream.console.web.access import Access
from orderstream.console.web.pages import StaticFiles, Templates
from orderstream.http_server.connection import Connection
from orderstream.http_server.server_state import Limits, ServerState
from orderstream.settings import Settings
from orderstream.telemetry.tracing import Tracer

TOKEN, READ_TOKEN = "an-operator-token-of-a-test", "a-read-token-of-a-test"
START_SECONDS = 30


class RunningConsole:
    """A console that serves. `client` is the operator, `reader` may only read."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = _client(url, TOKEN)
        self.reader = _client(url, READ_TOKEN)

    def get(self, path: str, status: int = 200, **query: Any) -> Any:
        """Return the JSON of a GET, which must have this status."""
        answer = self.client.get(path, params=query or None)
        assert answer.status_code == status, answer.text
        return answer.json()

    def post(self, path: str, body: dict[str, Any], status: int = 200) -> Any:
        """Return the JSON of a POST, which must have this status."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def page(self, path: str, status: int = 200) -> str:
        """Return a page, which must have this status."""
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    def submit(self, path: str, status: int = 200, **fields: str) -> str:
        """Submit a form, and return the page that a browser shows then."""
        answer = self.client.post(path, data=fields)
        assert answer.status_code == status, answer.text
        return answer.text


def _client(url: str, token: str) -> httpx.Client:
    return httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {token}", "Operator-Name": "Ada"},
        timeout=60,
        trust_env=False,
        follow_redirects=True,
    )


@contextmanager
def running_console(settings: Settings, local: LocalStack | None = None) -> Iterator[RunningConsole]:
    """Run a console until the block ends. It belongs to the local stack `local`, if one is given."""
    ports: list[int] = []
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(settings, local, ports, stop))
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=work, name="console")
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not ports:
        assert thread.is_alive(), f"the console has ended: {failures}"
        assert time.monotonic() < deadline, "the console serves"
        time.sleep(0.005)
    running = RunningConsole(f"http://127.0.0.1:{ports[0]}")
    try:
        yield running
    finally:
        running.client.close()
        running.reader.close()
        stop.set()
        thread.join(START_SECONDS)
        assert not thread.is_alive(), "the console ends"
    assert not failures


async def _serve(settings: Settings, local: LocalStack | None, ports: list[int], stop: threading.Event) -> None:
    async with AsyncExitStack() as stack:
        stores = stack.enter_context(Stores(settings))
        static = StaticFiles()
        templates = Templates(static, {"is_local": local is not None, "trace_ui_url": settings.trace_ui_url})
        console = Console(settings, stores, templates, local)
        stack.callback(console.close)
        for running in RUNNING:
            await stack.enter_async_context(running(console))
        app = application(console, static, Access(TOKEN, READ_TOKEN, time.time))
        state = ServerState(
            app, Tracer(None, 0), Limits(connections=100, connections_per_peer=100, request_timeout_seconds=20.0)
        )
        server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(stop.wait)
        server.close()
        for connection in list(state.connections):
            connection.abort()
        for task in state.tasks:
            task.cancel()
