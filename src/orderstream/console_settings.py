"""Checks the settings of the console."""

import re
from urllib.parse import urlsplit

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


def instances(value: str) -> str:
    """Refuse a list of processes that the console could not read. Raises ValueError."""
    for instance in filter(None, map(str.strip, value.split(","))):
        name, _, address = instance.partition("=")
        url = urlsplit(address)
        if not _NAME.fullmatch(name) or url.scheme != "http" or not url.hostname or not url.port:
            raise ValueError("expected name=http://host:port pairs separated by commas, with names of services")
    return value
