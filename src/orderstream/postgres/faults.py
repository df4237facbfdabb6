"""What an error of Postgres is about: the value, the row, the session, or the database. Decided by its SQLSTATE.

Only an error that Postgres raises about data may be charged to an order or a record. An error that this module does not
know is never charged to data.
"""

import re
from enum import Enum, auto

import psycopg


class Fault(Enum):
    """What has to change before the same statement can succeed."""

    VALUE = auto()
    """A value that was given: it cannot be stored. The same value is refused again."""
    ROW = auto()
    """A row breaks a constraint, or our own arithmetic left the range of its type. It may be a defect of ours."""
    SESSION = auto()
    """The session or the state of the server. A retry on a fresh session may succeed."""
    UNKNOWN = auto()
    """No rule here names the code. Retry on a fresh session, a bounded number of times."""
    FATAL = auto()
    """The database or the settings: a missing table, a wrong password. No retry helps on a fresh session."""


class UnsuitableServerError(psycopg.OperationalError):
    """The server answers, but orders must not be stored through this connection. The message is one line."""


class StaleSessionError(psycopg.OperationalError):
    """A session that had worked before reported a fatal error. Whether it is fatal shows on a fresh session."""


# By SQLSTATE, or by a class of them, which is its first two characters. A code goes before its class.
_FAULTS = {
    **dict.fromkeys(("08", "24", "25", "26", "2D", "34", "3B", "40", "53", "55", "57", "58"), Fault.SESSION),
    "42P05": Fault.SESSION,  # the name of a prepared statement is taken
    "22": Fault.VALUE,
    "54000": Fault.VALUE,  # a key that is too long for its index
    # Of class 22, but about the encoding of the session, a setting, or the format on the wire.
    **dict.fromkeys(("22021", "22023", "22P03"), Fault.UNKNOWN),
    "23": Fault.ROW,
    # A null, a division by zero, a subscript: in what our statements compute.
    **dict.fromkeys(("22004", "22012", "2202E"), Fault.ROW),
    **dict.fromkeys(("28", "3D", "3F", "42"), Fault.FATAL),
}
# Codes with two meanings, told apart by the function of the server that raised the error. Functions have the same names
# in every language of the server's messages. By code: the function, what it then is, and what it else is.
_BY_FUNCTION = {
    # A text or a literal that is no number of its type; else arithmetic with what is stored.
    "22003": (
        re.compile(r"pg_strtou?int\d+(_safe)?|float\d+in_internal|make_result\w*|apply_typmod\w*|set_var_\w+"),
        Fault.VALUE,
        Fault.ROW,
    ),
    # \u0000 in a JSON text; else a character that the server's encoding does not have.
    "22P05": (re.compile(r"json\w*"), Fault.VALUE, Fault.UNKNOWN),
    # A plan whose columns have changed; else a feature that the server does not have.
    "0A000": (re.compile(r"RevalidateCachedQuery"), Fault.SESSION, Fault.UNKNOWN),
}
# libpq keeps no SQLSTATE of a connection that was refused, so the server's words for classes 28 and 3D must do, and
# libpq's own for a server that is not the one it should be.
_REFUSED_FOR_GOOD = re.compile(
    r"FATAL: .*(authentication failed|no pg_hba\.conf entry|(role|database) .* does not exist|not permitted to log in)"
    r"|certificate verify failed|does not match host name|certificate file .* does not exist|does not support SSL"
)


def fault_of(error: BaseException) -> Fault | None:
    """Return what an error of Postgres is about; None for an error that is not psycopg's."""
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate
    if state is None:
        return _without_state(error)
    if state in _BY_FUNCTION:
        functions, then, otherwise = _BY_FUNCTION[state]
        return then if functions.fullmatch(error.diag.source_function or "") else otherwise
    return _FAULTS.get(state) or _FAULTS.get(state[:2], Fault.UNKNOWN)


def _without_state(error: psycopg.Error) -> Fault:
    """Judge an error that psycopg or libpq raised without an answer of the server."""
    if isinstance(error, UnsuitableServerError):
        return Fault.FATAL
    if isinstance(error, psycopg.DataError):
        return Fault.VALUE
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return Fault.FATAL if _REFUSED_FOR_GOOD.search(str(error)) else Fault.SESSION
    return Fault.UNKNOWN


def is_about_data(error: BaseException) -> bool:
    """Say whether the rows that were given are at fault, not the session: smaller batches find the one that is."""
    return fault_of(error) in {Fault.VALUE, Fault.ROW}


def is_transient(error: BaseException) -> bool:
    """Say whether the same statements may succeed on a fresh session."""
    return fault_of(error) in {Fault.SESSION, Fault.UNKNOWN}


def is_unknown(error: BaseException) -> bool:
    """Say whether retries of it must end: this module does not know the code."""
    return fault_of(error) is Fault.UNKNOWN


def is_bad_value(error: BaseException) -> bool:
    """Say whether a value cannot be stored: a NUL in a text, a number out of range, a key too long for its index."""
    return fault_of(error) is Fault.VALUE


def is_fatal(error: BaseException) -> bool:
    """Say whether no retry and no other record can help: a missing table or column, a wrong password."""
    return fault_of(error) is Fault.FATAL


def names_unknown_order(error: BaseException) -> bool:
    """Say whether a row was refused because the order that it is about does not exist."""
    return isinstance(error, psycopg.errors.ForeignKeyViolation) and (error.diag.constraint_name or "").endswith(
        "_order_id_fkey"
    )
