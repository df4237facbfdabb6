"""The passwords of a local stack. They are created once and kept in `secrets.json`, which only the owner can read.

The servers get them in configuration files, and OrderStream's services get them in their environment. No password is in
an argument, because every user of a machine can read the arguments of every process.
"""

import secrets

import msgspec

from orderstream.local.processes.files import write_private
from orderstream.local.processes.state import StateDir

_FILE = "secrets.json"
_BYTES = 24


def _password() -> str:
    """Return a password of letters and digits, which needs no quotes in a URL, in SQL or in a properties file."""
    return secrets.token_hex(_BYTES)


class Passwords(msgspec.Struct, frozen=True):
    """One password for each account of the servers."""

    postgres_superuser: str = msgspec.field(default_factory=_password)
    postgres: str = msgspec.field(default_factory=_password)
    postgres_console: str = msgspec.field(default_factory=_password)
    valkey: str = msgspec.field(default_factory=_password)
    kafka: str = msgspec.field(default_factory=_password)
    kafka_controller: str = msgspec.field(default_factory=_password)


def read(state: StateDir) -> Passwords | None:
    """Return the passwords of a stack, or None before its first start."""
    try:
        return msgspec.json.decode((state.root / _FILE).read_bytes(), type=Passwords)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def read_or_make(state: StateDir) -> Passwords:
    """Return the passwords of a stack, and create those that are missing. The caller holds the lock of `state`."""
    found = read(state)
    if found is None:
        found = Passwords()
    # Always written: a version that adds a password finds a file without it.
    write_private(state.root / _FILE, msgspec.json.format(msgspec.json.encode(found), indent=1))
    return found
