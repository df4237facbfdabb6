"""One real browser on the overview of the console, for the measurement of what the console costs orders."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from playwright.sync_api import sync_playwright

from orderstream.local.operator_token import read_or_make
from tests.support.system import System

CHROMIUM = "/usr/bin/chromium"
NICENESS = 19
"""In production the browser runs on another machine. Here it takes only the processor time that is left."""
LIMIT_MS = 60_000


@contextmanager
def watching(system: System) -> Iterator[None]:
    """Keep a browser on the overview of the running system until the block ends. The page updates itself."""
    before = set(psutil.Process().children(recursive=True))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(LIMIT_MS)
        page.goto(f"{system.urls['CONSOLE_URL']}/enter?token={read_or_make(system.state)}")
        page.wait_for_url(f"{system.urls['CONSOLE_URL']}/")
        for process in set(psutil.Process().children(recursive=True)) - before:
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        first = page.locator("#as-of").inner_text()
        yield
        assert page.locator("#as-of").inner_text() != first, "the overview did not update itself"
        browser.close()
