"""The operator's token of the console, in a file of the state directory that only its owner can read.

`up` and `orderstream console` use the same file. A visitor with this token may use every action of the console.
"""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from orderstream import console_settings
from orderstream.local.processes.files import PRIVATE_FILE, make_private
from orderstream.local.processes.state import StateDir
from orderstream.settings import Settings

FILE = "operator-token"
_BYTES = 24
_OTHERS = 0o077


class OperatorTokenError(Exception):
    """The operator's token must not be used. The message says what to do, and does not contain the token."""


def operator_token(settings: Settings, state: StateDir) -> str:
    """Return the operator's token from the settings, otherwise from the state directory, where it is made once.

    Raises OperatorTokenError.
    """
    given = settings.read_console_token()
    if given is not None:
        return given
    return read_or_make(state)


def check_listens_safely(settings: Settings) -> None:
    """Raise OperatorTokenError if the console would listen beyond this machine without a token from the settings."""
    if not console_settings.is_loopback(settings.console_host) and settings.read_console_token() is None:
        raise OperatorTokenError(
            f"CONSOLE_HOST is {settings.console_host}, so that other machines could reach the console."
            " Set CONSOLE_TOKEN or CONSOLE_TOKEN_FILE too."
        )


def token_of_running(settings: Settings, state: StateDir) -> str | None:
    """Return the operator's token of the running stack, or None if it cannot be read."""
    try:
        return settings.read_console_token() or _read(state.root / FILE)
    except (OperatorTokenError, ValueError):
        return None


def read_or_make(state: StateDir) -> str:
    """Return the token of a state directory, and make it if there is none. Several processes may call this at a time.

    Raises OperatorTokenError if another account may have read or written the file.
    """
    path = state.root / FILE
    make_private(state.root)
    if not path.exists():
        _make(path)
    return _read(path)


def _make(path: Path) -> None:
    """Write a new token completely, then give it its name, unless another process was first."""
    fresh = path.with_name(f"{FILE}.{secrets.token_hex(8)}.new")
    with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, PRIVATE_FILE)) as file:
        file.write(f"{secrets.token_hex(_BYTES)}\n".encode())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()


def _read(path: Path) -> str:
    """Return the token in `path`. Raises OperatorTokenError."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
            problem = _problem(os.fstat(file.fileno()))
            if problem is None:
                return console_settings.token_of(file.read(console_settings.TOKEN_MAX_CHARACTERS + 3))
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except ValueError as error:
        problem = f"has no token: {error}"
    raise OperatorTokenError(f"{path} {problem}. Remove it. The next start makes a new token.")


def _problem(found: os.stat_result) -> str | None:
    """Return why another account may know or have chosen the token, or None."""
    if not stat.S_ISREG(found.st_mode):
        return "is not a file"
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    if found.st_mode & _OTHERS:
        return "can be read by other users, who may know the token"
    return None
