"""Removes passwords from texts that are shown to people or written to logs."""

import re

MASK = "***"
_IN_USERINFO = re.compile(r"(://[^:/@\s]*):[^\s]*@")
_IN_ENTER_URL = re.compile(r"(/enter\?token=)[^\s&]+")
_IN_PARAMETER = re.compile(r"(?i)((?:password|passwd|secret|token)\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)")


def masked(text: str) -> str:
    """Return `text` with `***` in place of each password in an address, a query or a libpq connection string.

    If an address has an `@` in its path or query, more than the password is masked.
    """
    return _IN_PARAMETER.sub(rf"\1{MASK}", _IN_USERINFO.sub(rf"\1:{MASK}@", text))


def without_token(text: str) -> str:
    """Return `text` with `***` in place of the token in a one-click URL of the console."""
    return _IN_ENTER_URL.sub(rf"\1{MASK}", text)
