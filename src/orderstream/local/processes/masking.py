"""Takes passwords out of what is shown to people and written to logs."""

import re

MASK = "***"
_IN_USERINFO = re.compile(r"(://[^:/@\s]*):[^\s]*@")
_IN_PARAMETER = re.compile(r"(?i)((?:password|passwd|secret|token)\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)")


def masked(text: str) -> str:
    """Return `text` with `***` for each password in an address, a query or a libpq connection string.

    Of an address with an `@` in its path or query it masks more than the password.
    """
    return _IN_PARAMETER.sub(rf"\1{MASK}", _IN_USERINFO.sub(rf"\1:{MASK}@", text))
