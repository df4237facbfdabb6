"""The passwords of a local stack: made once, kept in `secrets.json` of its state directory, for its owner alone.

They reach the stores in configuration files and OrderStream's services in their environment, never in an argument:
every user of a machine can read the arguments of every process.
"""

import secrets

import msgspec

from orderstream.local.processes.files import write_private
from orderstream.local.processes.state import StateDir

_FILE = "secrets.json"
_BYTES = 24


def _password() -> str:
    """A password of letters and digits only, which needs no quoting in a URL, in SQL or in a file of properties."""
    return secrets.token_hex(_BYTES)


class Passwords(msgspec.Struct, frozen=True):
    """One password for each account of the stores."""

    postgres_superuser: str = msgspec.field(default_factory=_password)
    postgres: str = msgspec.field(default_factory=_password)
    valkey: str = msgspec.field(default_factory=_password)
    kafka: str = msgspec.field(default_factory=_password)
    kafka_controller: str = msgspec.field(default_factory=_password)


def read(state: StateDir) -> Passwords | None:
    """Return the passwords of a stack, or None where no start has made them yet."""
    try:
        return msgspec.json.decode((state.root / _FILE).read_bytes(), type=Passwords)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def read_or_make(state: StateDir) -> Passwords:
    """Return the passwords of a stack, and make them first where they are missing. For the holder of the lock."""
    found = read(state)
    if found is None:
        found = Passwords()
    # Written in any case: a version that adds a password finds a file without it.
    write_private(state.root / _FILE, msgspec.json.format(msgspec.json.encode(found), indent=1))
    return found
