"""Takes the screenshots of the console for README and docs/console.md, from a real run. Usage: make screenshots."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page
from tests.support.browser import chromium
from tests.support.console_stack import SETTINGS, ConsoleStack
from tests.support.system import system

IMAGES = Path(__file__).parent / "images"
# Name, path of the page, theme. `{order}` is an order that failed after its payment, so that the page tells a story.
SHOTS = (
    ("overview-light", "/", "light"),
    ("overview-dark", "/", "dark"),
    ("orders", "/orders", "light"),
    ("order", "/orders/{order}?all=true", "light"),
    ("dead-letters", "/dead-letters", "light"),
    ("play", "/play", "light"),
)
SIZE = {"width": 1280, "height": 800}
TRAFFIC_SECONDS = 40.0
ORDERS_PER_SECOND = 5


@contextmanager
def _opened(browser: Browser, stack: ConsoleStack, theme: str) -> Iterator[Page]:
    # Chromium keeps room for a scrollbar, which a picture does not need. Only this context may have a style of its own.
    context = browser.new_context(
        viewport={"width": SIZE["width"], "height": SIZE["height"]},
        color_scheme="dark" if theme == "dark" else "light",
        bypass_csp=True,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(f"{stack.url}/enter?token={stack.token}")
    page.wait_for_url(f"{stack.url}/")
    yield page
    context.close()


def shoot(browser: Browser, stack: ConsoleStack) -> None:
    """Write every picture of a running stack."""
    IMAGES.mkdir(exist_ok=True)
    for name, path, theme in SHOTS:
        with _opened(browser, stack, theme) as page:
            page.goto(stack.url + path.format(order=stack.orders["CANCELLED"]))
            page.add_style_tag(content="html { scrollbar-gutter: auto }")
            # The first update of a live part shows the rates of now.
            page.wait_for_timeout(3_000)
            page.screenshot(path=IMAGES / f"{name}.png", scale="css")


def traffic(stack: ConsoleStack) -> None:
    """Place orders at a steady rate, so that the pages have rates and lines to show."""
    until = time.monotonic() + TRAFFIC_SECONDS
    number = 0
    while time.monotonic() < until:
        number += 1
        stack.place("NO-SUCH-SKU" if number % 12 == 0 else "SKU-1", user=f"u-{number % 7}")
        time.sleep(1 / ORDERS_PER_SECOND)


def main() -> None:
    """Start a stack of its own, fill it, and take the pictures."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser, system(Path(folder)) as running:
        running.up(**SETTINGS).serves()
        running.command("stock", "add", "SKU-1", "1000")
        stack = ConsoleStack(running)
        stack.fill()
        traffic(stack)
        shoot(browser, stack)


if __name__ == "__main__":
    main()
