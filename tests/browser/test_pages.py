"""Every page, in both themes, on a large and on a small screen: accessible, as wide as the screen, without errors."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from orderstream.console.areas import PAGES as AREAS
from orderstream.console.context import Console
from orderstream.console.stores import Stores
from orderstream.console.web.pages import StaticFiles, Templates
from orderstream.settings import load
from tests.browser.pages import PAGES, PARTS
from tests.support.browser import Watch, overflow_pixels, violations
from tests.support.console_stack import ConsoleStack

Browse = Callable[..., Page]
# The rules of axe whose result depends on the theme. The others are checked once for each size of the screen.
_OF_THE_THEME = ("color-contrast", "link-in-text-block")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_accessible_and_fits_in_both_themes_on_both_screens(
    browse: Browse, stack: ConsoleStack, name: str
) -> None:
    page = browse(PAGES[name][1](stack))
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="light")
        assert overflow_pixels(page) == 0, f"{name} is wider than {width} px"
        assert violations(page) == "", f"light, {width} px"
        page.emulate_media(color_scheme="dark")
        assert violations(page, *_OF_THE_THEME) == "", f"dark, {width} px"


def test_the_list_of_pages_is_complete() -> None:
    settings = load()
    console = Console(settings, Stores(settings), Templates(StaticFiles(), {}), None)
    routes = {route.path for area in AREAS for route in area(console) if "GET" in (route.methods or ())}
    assert routes <= {route for route, _ in PAGES.values()} | PARTS.keys(), (
        "add the new pages to tests/browser/pages.py"
    )


@pytest.mark.parametrize("path", ["/no-such-page", "/orders/not-an-id"])
def test_a_page_that_does_not_exist_says_so(browse: Browse, watch: Watch, path: str) -> None:
    watch.allow("404")
    page = browse(path)
    assert page.locator("h1").inner_text() == "Not found"
    assert violations(page) == ""


def test_a_visitor_who_is_not_logged_in_sees_the_login_and_comes_to_the_overview(
    browse: Browse, watch: Watch, stack: ConsoleStack
) -> None:
    watch.allow("401")
    page = browse("/orders")
    page.context.clear_cookies()
    page.reload()
    assert page.locator("h1").inner_text() == "Log in"
    page.get_by_label("token").fill("a-wrong-token-of-a-test")
    page.keyboard.press("Enter")
    page.get_by_text("The token is wrong.").wait_for()
    page.get_by_label("token").fill(stack.token)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{stack.url}/")
    assert stack.token not in page.content()


def test_a_reader_sees_why_a_form_is_disabled(browse: Browse, stack: ConsoleStack) -> None:
    page = browse(f"/orders/{stack.orders['PROCESSING']}", role="reader")
    assert page.get_by_text("Read only").is_visible()
    assert page.get_by_text("You are logged in with the read-only token.").first.is_visible()
    assert page.locator("main form.action fieldset:not(:disabled)").count() == 0


def test_the_chosen_theme_is_kept_and_there_before_the_first_paint(browse: Browse) -> None:
    page = browse("/orders")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    button = page.get_by_role("button", name="Theme: system")
    button.click()
    button = page.get_by_role("button", name="Theme: light")
    button.click()
    assert page.get_by_role("button", name="Theme: dark").is_visible()
    dark = page.evaluate(ground)
    assert dark != light
    # The first animation frame comes before the first paint.
    page.add_init_script(f"requestAnimationFrame(() => {{ window.firstGround = document.body && {ground}; }})")
    page.goto("/stock")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("window.firstGround") in (None, dark)
    assert page.evaluate(ground) == dark
