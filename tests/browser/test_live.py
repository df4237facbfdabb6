"""Live parts: what is new appears by itself, nothing moves, and a lost connection is shown and ends."""

import os
import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import Watch
from tests.support.console_stack import ConsoleStack
from tests.support.system import RESTART_SECONDS
from tests.support.waiting import wait_until

Browse = Callable[..., Page]
UPDATE_SECONDS = 60.0
OWN_TEXT = 0.0005
"""The value of a layout shift that is only a right-aligned text which became longer or shorter."""
_COUNT_SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const shift of list.getEntries()) {
    const moved = shift.sources.map(({node}) => (node?.outerHTML ?? node?.textContent ?? "").slice(0, 200));
    window.shifts.push({value: shift.value, moved});
  }
}).observe({type: "layout-shift", buffered: true});
window.updates = 0;
document.addEventListener("htmx:after:swap", () => { window.updates += 1; });
"""


def await_updates(page: Page, count: int) -> None:
    """Wait until the live parts of a page were updated so often from now on."""
    # The content security policy forbids wait_for_function, which evaluates a string in the page.
    page.evaluate("window.updates = 0")
    wait_until(lambda: page.evaluate("window.updates") >= count, UPDATE_SECONDS, f"{count} updates of the page")


def test_an_order_appears_in_the_list_by_itself(browse: Browse, stack: ConsoleStack) -> None:
    page = browse("/orders")
    order_id = stack.place()
    expect(page.locator("main").get_by_text(order_id)).to_be_visible(timeout=30_000)


@pytest.mark.parametrize("path", ["/", "/orders", "/dead-letters", "/topics"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_moves_while_a_page_is_updated(browse: Browse, stack: ConsoleStack, path: str, width: int) -> None:
    page = browse("/enter", width=width)
    page.add_init_script(_COUNT_SHIFTS)
    page.goto(path)
    await_updates(page, 1)
    stack.place()
    await_updates(page, 3)
    moved = [shift for shift in page.evaluate("window.shifts") if shift["value"] > OWN_TEXT]
    assert moved == []


def test_focus_open_details_and_scroll_survive_updates(browse: Browse) -> None:
    page = browse("/orders")
    page.evaluate(_COUNT_SHIFTS)
    page.keyboard.press("j")
    page.keyboard.press("j")
    held = page.evaluate("document.activeElement.href")
    assert "/orders/" in held
    expect(page.locator("#connection")).to_contain_text("held while you use the list")
    page.keyboard.press("/")
    page.keyboard.type("typed text")
    page.mouse.wheel(0, 120)
    await_updates(page, 3)
    assert page.evaluate("document.activeElement.value") == "typed text"


def test_a_hidden_page_asks_for_nothing(browse: Browse) -> None:
    page = browse("/orders")
    page.evaluate(_COUNT_SHIFTS)
    await_updates(page, 1)
    asked: list[str] = []
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.on("request", lambda request: asked.append(request.url))
    ticks = "window.ticks = 0; document.addEventListener('every', () => { window.ticks += 1; }, true)"
    page.evaluate(ticks)
    wait_until(lambda: page.evaluate("window.ticks") >= 3, UPDATE_SECONDS, "the timer of the live part ran")
    assert asked == []
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    await_updates(page, 1)
    assert asked


def test_a_lost_connection_is_shown_and_ends(browse: Browse, watch: Watch, stack: ConsoleStack) -> None:
    watch.allow("failed request|console error|console warning")
    page = browse("/orders")
    banner = page.locator("#banner")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")
    assert not banner.is_visible()
    pid = stack.system.pid("console")
    os.kill(pid, signal.SIGSTOP)
    try:
        expect(banner).to_contain_text("Connection lost since", timeout=20_000)
        assert banner.is_visible()
        expect(page.locator("#connection")).to_contain_text("connection lost")
        assert "The data may be old." in banner.inner_text()
    finally:
        os.kill(pid, signal.SIGCONT)
    banner.get_by_role("button", name="Try now").click()
    expect(banner).to_contain_text("The connection is back since", timeout=20_000)
    expect(page.locator("#connection")).to_have_attribute("data-state", "live")


def test_a_page_goes_on_after_the_console_was_killed(browse: Browse, watch: Watch, stack: ConsoleStack) -> None:
    watch.allow("failed request|console error|console warning")
    page = browse("/orders")
    before = stack.system.pid("console")
    # The supervisor may restart it before the page asks again. Then the page notices nothing.
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: stack.replaced("console", before), RESTART_SECONDS, "the console is restarted")
    expect(page.locator("#connection")).to_have_attribute("data-state", "live", timeout=30_000)
    order_id = stack.place()
    expect(page.locator("main").get_by_text(order_id)).to_be_visible(timeout=30_000)
    assert stack.becomes(order_id, "CONFIRMED"), "orders do not depend on the console"


def test_an_ended_session_leads_to_the_login(browse: Browse, watch: Watch) -> None:
    watch.allow("401")
    page = browse("/orders")
    page.context.clear_cookies()
    expect(page.locator("h1")).to_have_text("Log in")
