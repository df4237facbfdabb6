"""The SQLite file of the ledger: idempotency keys, and an append-only list of charges and voids.

Every statement runs within the transaction of the caller. A payment that a caller was told about is on disk, because
the caller answers after its commit. Times are Unix times in milliseconds, from a clock that is passed in.
"""

import sqlite3
from collections.abc import Callable
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

Status = Literal["authorized", "declined", "pending", "voided"]
VoidStatus = Literal["voided", "nothing_to_void"]

APPLICATION_ID = 0x4F53504C
FORMAT = 1
_SCHEMA = """
CREATE TABLE keys (
    key TEXT PRIMARY KEY,
    status TEXT NOT NULL CHECK (status IN ('authorized', 'declined', 'pending', 'voided')),
    amount TEXT,
    currency TEXT,
    created_at INTEGER NOT NULL,
    -- When a pending payment is decided.
    due_at INTEGER CHECK ((due_at IS NOT NULL) = (status = 'pending')),
    -- The status that follows a pending one, or the answer to a void.
    outcome TEXT CHECK ((outcome IS NOT NULL) = (status IN ('pending', 'voided')))
) WITHOUT ROWID;
CREATE INDEX keys_due ON keys (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('charge', 'void')),
    amount TEXT NOT NULL,
    currency TEXT NOT NULL,
    at INTEGER NOT NULL
);
CREATE INDEX entries_key ON entries (key, id);
CREATE TRIGGER charge_new AFTER INSERT ON keys WHEN NEW.status = 'authorized' BEGIN
    INSERT INTO entries (key, kind, amount, currency, at)
    VALUES (NEW.key, 'charge', NEW.amount, NEW.currency, NEW.created_at);
END;
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
CREATE TRIGGER entries_last BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
"""

_FIND = "SELECT status, amount, currency, created_at, due_at, outcome FROM keys WHERE key = ?"
_NEW = """
INSERT INTO keys (key, status, amount, currency, created_at, due_at, outcome) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO NOTHING
"""
_FORGET = "DELETE FROM keys WHERE key = ?"
_SET_STATUS = "UPDATE keys SET status = ?, due_at = NULL, outcome = ? WHERE key = ?"
_ADD = "INSERT INTO entries (key, kind, amount, currency, at) VALUES (?, ?, ?, ?, ?)"
_HELD = """
SELECT amount, currency FROM entries
WHERE key = ?1 AND id > coalesce((SELECT max(id) FROM entries WHERE key = ?1 AND kind = 'void'), 0)
ORDER BY id
"""
_DUE = "SELECT key, amount, currency, outcome FROM keys WHERE due_at <= ? ORDER BY due_at LIMIT ?"
_HISTORY = "SELECT kind, amount, currency, at FROM entries WHERE key = ? ORDER BY id"
_ACCOUNTS = """
SELECT k.key, k.status, k.amount, k.currency, k.created_at, e.kind, e.amount
FROM {} AS k LEFT JOIN entries AS e ON e.key = k.key
ORDER BY k.key, e.id
"""
_ONE = _ACCOUNTS.format("(SELECT * FROM keys WHERE key = ?)")
_PAGE = _ACCOUNTS.format("(SELECT * FROM keys WHERE key > ? ORDER BY key LIMIT ?)")


class LedgerError(Exception):
    """The file cannot be used as a ledger: corrupt, of another program or format, or in use by another process."""


class KeyReusedError(Exception):
    """The key belongs to a payment of another amount or currency."""


class Authorization(Struct, frozen=True):
    """A request to hold an amount, with what the provider decides about this key if it is new.

    The provider charges again for a key that is older than `key_lifetime_seconds`, because it has forgotten it.
    `amount` has the digits of its currency.
    """

    key: str
    amount: str
    currency: str
    outcome: Literal["authorized", "declined"] = "authorized"
    pending_seconds: float | None = None
    key_lifetime_seconds: float = 86_400


class Payment(Struct, frozen=True):
    """A payment. Amount and currency are None if its key was voided before any call to authorize."""

    key: str
    status: Status
    amount: str | None
    currency: str | None


class Entry(Struct, frozen=True):
    """A charge or a void. `at` is a Unix time in milliseconds."""

    kind: Literal["charge", "void"]
    amount: str
    currency: str
    at: int


class Account(Struct, frozen=True):
    """A payment with the number of its charges, and the amount that the provider holds now. Times in milliseconds."""

    payment: Payment
    charges: int
    held: Decimal
    created_at: int


class Store:
    """The open file. One thread uses it at a time. No other process can open it meanwhile."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Open the ledger at `path`, or create it. `clock` returns a Unix time in seconds. Raises LedgerError."""
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            self._execute = self._connection.execute
            _prepare(self._connection)
        except (sqlite3.Error, OSError, LedgerError) as error:
            self.close()
            is_locked = isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            problem = "another process uses it" if is_locked else str(error)
            raise LedgerError(f"the ledger {path} cannot be used: {problem}") from error

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()

    def begin(self) -> None:
        """Begin a transaction."""
        self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Commit the transaction. After that, its changes survive the end of the process and of the machine."""
        self._execute("COMMIT")

    def roll_back(self) -> None:
        """Roll the transaction back, if there is one."""
        if self._connection is not None and self._connection.in_transaction:
            self._execute("ROLLBACK")

    def authorize(self, request: Authorization) -> Payment:
        """Charge, or return the payment that the key has already. Raises KeyReusedError."""
        now = self._now()
        if payment := self._new(request, now):
            return payment
        status, amount, currency, created_at, due_at, outcome = self._execute(_FIND, (request.key,)).fetchone()
        if now >= created_at + request.key_lifetime_seconds * 1_000:
            self._execute(_FORGET, (request.key,))
            payment = self._new(request, now)
            assert payment is not None, "the key has just been deleted"
            return payment
        if amount is not None and (amount, currency) != (request.amount, request.currency):
            raise KeyReusedError(f"the key belongs to a payment of {amount} {currency}")
        if due_at is not None and due_at <= now:
            self._decide(request.key, amount, currency, outcome)
            status = outcome
        return Payment(request.key, status, amount, currency)

    def _new(self, request: Authorization, now: int) -> Payment | None:
        """Begin a payment. Return None if the key has one. A trigger adds the charge of an authorized payment."""
        status: Status = request.outcome if request.pending_seconds is None else "pending"
        due_at = None if request.pending_seconds is None else now + round(request.pending_seconds * 1_000)
        outcome = None if request.pending_seconds is None else request.outcome
        values = (request.key, status, request.amount, request.currency, now, due_at, outcome)
        is_new = self._execute(_NEW, values).rowcount
        return Payment(request.key, status, request.amount, request.currency) if is_new else None

    def void(self, key: str) -> VoidStatus:
        """Release all that is held for the key, or return the answer to an earlier void.

        A key that was never used gets a row, so that it cannot be charged later.
        """
        now = self._now()
        row = self._execute(_FIND, (key,)).fetchone()
        if row is not None and row[0] == "voided":
            earlier: VoidStatus = row[-1]
            return earlier
        held = self._execute(_HELD, (key,)).fetchall()
        answer: VoidStatus = "voided" if held else "nothing_to_void"
        for amount, currency in held:
            self._execute(_ADD, (key, "void", amount, currency, now))
        if row is None:
            self._execute(_NEW, (key, "voided", None, None, now, None, answer))
        else:
            self._execute(_SET_STATUS, ("voided", answer, key))
        return answer

    def decide_due(self, limit: int) -> list[str]:
        """Authorize or decline pending payments whose time is over, at most `limit`. Return their keys."""
        due = self._execute(_DUE, (self._now(), limit)).fetchall()
        for key, amount, currency, outcome in due:
            self._decide(key, amount, currency, outcome)
        return [row[0] for row in due]

    def _decide(self, key: str, amount: str, currency: str, outcome: str) -> None:
        self._execute(_SET_STATUS, (outcome, None, key))
        if outcome == "authorized":
            self._execute(_ADD, (key, "charge", amount, currency, self._now()))

    def find(self, key: str) -> Account | None:
        """Return the payment of a key. None if the key was never used."""
        return next(iter(_accounts(self._execute(_ONE, (key,)).fetchall())), None)

    def history(self, key: str) -> list[Entry] | None:
        """Return the charges and voids of a key, oldest first. None if the key was never used."""
        if self._execute(_FIND, (key,)).fetchone() is None:
            return None
        return [Entry(*row) for row in self._execute(_HISTORY, (key,))]

    def page(self, after: str, limit: int) -> list[Account]:
        """Return at most `limit` payments in the order of their keys, beginning after the key `after`."""
        return _accounts(self._execute(_PAGE, (after, limit)).fetchall())

    def _now(self) -> int:
        return int(self._clock() * 1_000)


def _accounts(rows: list[Any]) -> list[Account]:
    """Return a payment for each key in the rows of _ONE or _PAGE."""
    accounts = []
    for (key, status, amount, currency, created_at), entries in groupby(rows, key=lambda row: row[:5]):
        charges, held = 0, Decimal(0)
        for *_, kind, entered in entries:
            if kind is not None:
                charges += kind == "charge"
                held += Decimal(entered) if kind == "charge" else -Decimal(entered)
        accounts.append(Account(Payment(key, status, amount, currency), charges, held, created_at))
    return accounts


def _prepare(connection: sqlite3.Connection) -> None:
    """Lock the file, check it, and create the tables in an empty one. Raises LedgerError or sqlite3.Error."""
    execute = connection.execute
    # An exclusive lock keeps a second simulator out. It also saves the shared memory of WAL mode, and its locks.
    execute("PRAGMA locking_mode = EXCLUSIVE")
    execute("BEGIN EXCLUSIVE")
    (application_id,), (version,) = (
        execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
    )
    (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
    is_new = not (application_id or version or tables)
    if not is_new and application_id != APPLICATION_ID:
        raise LedgerError("it is a database of another program")
    if not is_new and version != FORMAT:
        raise LedgerError(f"it has format {version}, and this version of OrderStream uses format {FORMAT}")
    execute("COMMIT")
    execute("PRAGMA journal_mode = WAL")
    execute("PRAGMA synchronous = FULL")
    if is_new:
        marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
        connection.executescript(f"BEGIN EXCLUSIVE;{_SCHEMA}{marks}COMMIT;")
    problem = execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise LedgerError(f"it is corrupt: {' '.join(problem.split())}")
