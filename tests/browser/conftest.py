"""One browser and one stack for all browser tests. A page that reports an error fails its test."""

from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, StorageState, expect

from tests.support.browser import Watch, chromium
from tests.support.console_stack import READ_TOKEN, SETTINGS, ConsoleStack
from tests.support.system import system

Role = Literal["operator", "reader"]
LIMIT_MILLISECONDS = 15_000
"""How long a page may take to show something. Generous, because the machine may be busy."""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The browser. It ends after the last browser test: no other test may run in its event loop."""
    expect.set_options(timeout=LIMIT_MILLISECONDS)
    with chromium() as running:
        yield running


@pytest.fixture(scope="package")
def stack(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleStack]:
    """The stack, with orders in several states and a dead letter. A test leaves it running."""
    with system(tmp_path_factory.mktemp("console")) as running:
        running.up(**SETTINGS).serves()
        started = ConsoleStack(running)
        started.fill()
        yield started


@pytest.fixture(scope="package")
def sessions(browser: Browser, stack: ConsoleStack) -> dict[Role, StorageState]:
    """The cookies of an operator and of a reader."""
    tokens: dict[Role, str] = {"operator": stack.token, "reader": READ_TOKEN}
    states: dict[Role, StorageState] = {}
    for role, token in tokens.items():
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{stack.url}/enter?token={token}")
        page.wait_for_url(f"{stack.url}/")
        states[role] = context.storage_state()
        context.close()
    return states


@pytest.fixture
def watch() -> Iterator[Watch]:
    """What goes wrong in the pages of this test. The test fails if it is not expected."""
    seen = Watch()
    yield seen
    seen.check()


@pytest.fixture
def browse(
    browser: Browser, stack: ConsoleStack, sessions: dict[Role, StorageState], watch: Watch
) -> Iterator[Callable[..., Page]]:
    """A function that opens a page of the console in a window of its own, as an operator or as a reader."""
    contexts: list[BrowserContext] = []

    def opened(path: str = "/", *, role: Role = "operator", width: int = 1280, theme: str = "light") -> Page:
        context = browser.new_context(
            base_url=stack.url,
            storage_state=sessions[role],
            viewport={"width": width, "height": 900},
            color_scheme="dark" if theme == "dark" else "light",
            reduced_motion="reduce",
        )
        contexts.append(context)
        context.set_default_timeout(LIMIT_MILLISECONDS)
        page = context.new_page()
        watch.follow(page)
        page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()
