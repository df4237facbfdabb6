"""Who may use the console: the operator by a token, a reader by the read-only token, a browser by a signed cookie.

A cookie holds no token. It is signed with a key that is derived from the operator's token, so that a session survives
a restart, is valid at every replica, and ends when the token changes.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from orderstream.telemetry.ingest import ingest_token

Role = Literal["operator", "reader"]

SESSION_SECONDS = 604_800
"""A week."""
NAME_MAX_CHARACTERS = 80


class Visitor(Struct, frozen=True):
    """Who sent a request. `name` is what the visitor calls itself. It is recorded with each action."""

    role: Role
    name: str

    @property
    def may_act(self) -> bool:
        """Whether this visitor may change anything."""
        return self.role == "operator"

    @property
    def actor(self) -> str:
        """The text that is recorded with an action."""
        return f"{self.name} ({self.role})"


class Access:
    """Checks tokens and cookies. `clock` returns Unix time in seconds."""

    def __init__(self, operator_token: str, read_token: str | None, clock: Callable[[], float], port: int = 0) -> None:
        # Browsers send a cookie to every port of a host. Consoles of several checkouts must not share one.
        self.session_cookie = f"orderstream_session_{port}"
        self._tokens: dict[Role, bytes] = {"operator": operator_token.encode()}
        if read_token is not None:
            self._tokens["reader"] = read_token.encode()
        self._clock = clock
        self._session_key = self._derived("session")
        self.ingest_token = ingest_token(operator_token)
        """The token of services that send spans."""

    def role_of(self, token: str) -> Role | None:
        """Return the role of a token. Takes the same time for every wrong token."""
        given = token.encode("utf-8", "surrogateescape")
        found: Role | None = None
        for role, expected in self._tokens.items():
            if hmac.compare_digest(given, expected):
                found = role
        return found

    def may_send_spans(self, token: str) -> bool:
        """Return whether this is the ingest token."""
        return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self.ingest_token.encode())

    def new_session(self, role: Role) -> str:
        """Return the value of a new session's cookie."""
        content = f"{role}.{int(self._clock())}.{secrets.token_hex(8)}"
        return f"{content}.{self._signature(role, content)}"

    def session_role(self, cookie: str) -> Role | None:
        """Return the role of a session, or None if the cookie is not ours or its session has ended."""
        content, _, signature = cookie.rpartition(".")
        role, _, rest = content.partition(".")
        began = rest.partition(".")[0]
        if role not in self._tokens or not (began.isascii() and began.isdecimal() and len(began) < 12):
            return None
        known: Role = "operator" if role == "operator" else "reader"
        given = signature.encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._signature(known, content).encode()):
            return None
        return known if 0 <= self._clock() - int(began) + 60 < SESSION_SECONDS + 60 else None

    def _signature(self, role: Role, content: str) -> str:
        """Return the signature of a session. It contains the role's token: a new token ends the role's sessions."""
        token = hashlib.sha256(self._tokens[role]).digest()
        return hmac.new(self._session_key + token, content.encode(), hashlib.sha256).hexdigest()

    def _derived(self, purpose: str) -> bytes:
        return hmac.new(self._tokens["operator"], f"orderstream {purpose}".encode(), hashlib.sha256).digest()
