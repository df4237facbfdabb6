"""An operator who uses only the keyboard: finds an order, cancels it, and redrives a dead letter."""

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.support.console_stack import ConsoleStack

Browse = Callable[..., Page]
_STOPS_MAX = 120


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element with this text or label has the focus."""
    described = "(document.activeElement.labels?.[0]?.textContent ?? document.activeElement.textContent ?? '').trim()"
    seen = []
    for _ in range(_STOPS_MAX):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(described)[:60])
        if seen[-1].startswith(name):
            assert page.evaluate("document.activeElement.matches(':focus-visible')")
            return
    raise AssertionError(f"Tab does not reach {name!r}. It reached {seen}")


def test_find_an_order_and_cancel_it(browse: Browse, stack: ConsoleStack) -> None:
    order_id = stack.stuck_order()
    page = browse("/")
    page.keyboard.press("/")
    page.keyboard.type(order_id)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/orders/{order_id}")
    tab_to(page, "Reason")
    page.keyboard.type("the customer called")
    tab_to(page, "Cancel")
    page.keyboard.press("Enter")
    expect(page.locator("#confirm")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**done=*")
    assert stack.becomes(order_id, "CANCELLED")
    page.keyboard.press("g")
    page.keyboard.press("a")
    page.wait_for_url("**/actions")
    expect(page.get_by_text("the customer called").first).to_be_visible()


def test_walk_through_the_pages_and_the_rows_by_keys(browse: Browse) -> None:
    page = browse("/")
    for key, path in (("r", "/orders"), ("d", "/dead-letters"), ("s", "/stock"), ("o", "/")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        page.wait_for_url(f"**{path}")
    page.keyboard.press("g")
    page.keyboard.press("r")
    page.wait_for_url("**/orders")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    address = page.evaluate("document.activeElement.href")
    assert address == page.locator("main .row-link").first.evaluate("link => link.href")
    page.keyboard.press("Enter")
    page.wait_for_url(address)


def test_the_keys_are_listed_and_can_be_switched_off(browse: Browse) -> None:
    page = browse("/orders")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keyboard")
    expect(dialog).to_be_visible()
    page.get_by_label("Use these keys").uncheck()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("?")
    assert dialog.is_hidden()
    page.reload()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") != "find"


def test_the_first_stop_skips_the_navigation(browse: Browse) -> None:
    page = browse("/orders")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
