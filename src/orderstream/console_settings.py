"""Checks of the settings of the console, and the reading of the file that holds its token.

Each check returns the setting, or raises ValueError with a message that repeats no secret.
"""

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

TOKEN_MIN_CHARACTERS = 16
TOKEN_MAX_CHARACTERS = 512
HOSTNAMES_MAX = 20

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_TOKEN = re.compile(rf"[!-~]{{{TOKEN_MIN_CHARACTERS},{TOKEN_MAX_CHARACTERS}}}")
_TOKEN_RULE = f"{TOKEN_MIN_CHARACTERS} to {TOKEN_MAX_CHARACTERS} visible ASCII characters and no space"
_HOST_NAME = re.compile(
    r"(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?"
)


def token(value: str) -> str:
    """Check that a token can stand in a header field, and that it is not too short to be secret."""
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"must have {_TOKEN_RULE}")
    return value


def token_file(path: str) -> str:
    """Check that a file has a token in one line."""
    read_token(Path(path))
    return path


def read_token(path: Path) -> str:
    """Return the token in a file. Raises ValueError if the file has none, or more than one line."""
    try:
        with path.open("rb") as file:
            content = file.read(TOKEN_MAX_CHARACTERS + 3)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    return token_of(content)


def token_of(content: bytes) -> str:
    """Return the token in the content of a file. Raises ValueError if there is none, or more than one line."""
    line = content.removesuffix(b"\n").removesuffix(b"\r").decode("latin-1")
    if not _TOKEN.fullmatch(line):
        raise ValueError(f"the file must have one line of {_TOKEN_RULE}")
    return line


def hostnames(value: str | Sequence[str]) -> tuple[str, ...]:
    """Check the names that a Host field may have, without ports. Return them in lower case, and without brackets."""
    given = value.split(",") if isinstance(value, str) else value
    names = [name.strip().lower().rstrip(".") for name in given if name.strip()]
    if len(names) > HOSTNAMES_MAX:
        raise ValueError(f"must have at most {HOSTNAMES_MAX} names")
    if not all(_HOST_NAME.fullmatch(name) or _is_ipv6(name) for name in names):
        raise ValueError("expected host names or addresses separated by commas, without scheme and port")
    return tuple(name.strip("[]") for name in names)


def _is_ipv6(text: str) -> bool:
    """Return whether a text is an IPv6 address in brackets."""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        return False
    return True


def instances(value: str) -> str:
    """Refuse a list of processes that the console could not read. Raises ValueError."""
    for instance in filter(None, map(str.strip, value.split(","))):
        name, _, address = instance.partition("=")
        url = urlsplit(address)
        if not _NAME.fullmatch(name) or url.scheme != "http" or not url.hostname or not url.port:
            raise ValueError("expected name=http://host:port pairs separated by commas, with names of services")
    return value


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def web_url(value: str) -> str:
    """Check an address that the console calls, or that its pages link to. Return it without a slash at the end."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("its host or port cannot be read") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not value.isascii() or not value.isprintable():
        raise ValueError("it must begin with http:// or https://, followed by a host")
    if "@" in parts.netloc or re.search(r"[\s\"'<>\\]", value):
        raise ValueError("it must have no user, no password, no space and no quotes")
    return value.rstrip("/")
