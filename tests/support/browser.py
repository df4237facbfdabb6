"""Chromium for the browser tests, and pages that fail their test when anything goes wrong in them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, Response, sync_playwright

from tests.support.browser_program import program

# A page that is left, or a part that asks no more, cancels its requests.
_CANCELLED = "net::ERR_ABORTED"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser without a window."""
    path = program()
    # The sandbox of Chromium refuses to run as root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """Collects what goes wrong in pages: errors and warnings, failed requests, error responses, and dialogs.

    Chromium reports a violation of the content security policy as an error of the console.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._allowed: list[re.Pattern[str]] = []

    def allow(self, pattern: str) -> None:
        """From now on, problems that match this pattern are expected."""
        self._allowed.append(re.compile(pattern))

    def follow(self, page: Page) -> None:
        """Collect the problems of this page."""
        page.on("console", self._message)
        page.on("pageerror", lambda error: self._note(f"exception: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._response)
        page.on("dialog", self._dialog)

    def check(self) -> None:
        """Fail if anything went wrong."""
        assert not self.problems, "\n".join(["the browser reported:", *self.problems])

    def _note(self, problem: str) -> None:
        if not any(pattern.search(problem) for pattern in self._allowed):
            self.problems.append(problem[:500])

    def _message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._note(f"console {message.type}: {message.text} ({message.location.get('url', '')})")

    def _dialog(self, dialog: Dialog) -> None:
        self._note(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _failed(self, request: Request) -> None:
        if request.failure != _CANCELLED:
            self._note(f"failed request: {request.url}: {request.failure}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self._note(f"response {response.status}: {response.url}")


def violations(page: Page, *rules: str) -> str:
    """Return a report of what axe finds, empty if it finds nothing. Without `rules`, it checks all of its rules."""
    # axe keeps the page busy. Without a pause, requests of live parts would reach their time limit meanwhile.
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    options: dict[str, object] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": list(rules)}
    results = Axe().run(page, options=options)
    page.evaluate("delete document.hidden")
    return results.generate_report() if results.violations_count else ""


def overflow_pixels(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    pixels: int = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return max(pixels, 0)
