"""Classifies errors of Postgres by their SQLSTATE: a value, a row, the session, or the database is at fault.

Only an error about data may be charged to an order or a record. An error that this module does not know is never
charged to data.
"""

import re
from enum import Enum, auto

import psycopg


class Fault(Enum):
    """What must change before the same statement can succeed."""

    VALUE = auto()
    """A parameter cannot be stored. Postgres refuses the same value again."""
    ROW = auto()
    """A row violates a constraint, or our arithmetic left the range of its type. It may be a defect in our code."""
    SESSION = auto()
    """The session or the state of the server. A retry on a new session may succeed."""
    UNKNOWN = auto()
    """No rule here has this code. Retry on a new session, a bounded number of times."""
    FATAL = auto()
    """The database or the settings, such as a missing table or a wrong password. A new session does not help."""


class UnsuitableServerError(psycopg.OperationalError):
    """The server responds, but orders must not be stored through this connection. The message is one line."""


class StaleSessionError(psycopg.OperationalError):
    """A session that had worked before reported a fatal error. A new session shows whether the error persists."""


# By SQLSTATE, or by its class, which is the first two characters. A code goes before its class.
_FAULTS = {
    **dict.fromkeys(("08", "24", "25", "26", "2D", "34", "3B", "40", "53", "55", "57", "58"), Fault.SESSION),
    "42P05": Fault.SESSION,  # the name of a prepared statement is in use
    "22": Fault.VALUE,
    "54000": Fault.VALUE,  # a key that is too long for its index
    # Class 22, but about the encoding of the session, a setting, or the wire format.
    **dict.fromkeys(("22021", "22023", "22P03"), Fault.UNKNOWN),
    "23": Fault.ROW,
    # A null, a division by zero, or a subscript in the expressions of our statements.
    **dict.fromkeys(("22004", "22012", "2202E"), Fault.ROW),
    **dict.fromkeys(("28", "3D", "3F", "42"), Fault.FATAL),
}
# Codes with two meanings. The server's function that raised the error decides, since it has the same name in every
# language of the server's messages. By code: the function, the fault if it matches, and the fault otherwise.
_BY_FUNCTION = {
    # Text or a literal that is not a number of its type; otherwise arithmetic with stored values.
    "22003": (
        re.compile(r"pg_strtou?int\d+(_safe)?|float\d+in_internal|make_result\w*|apply_typmod\w*|set_var_\w+"),
        Fault.VALUE,
        Fault.ROW,
    ),
    # \u0000 in JSON text; otherwise a character that the server's encoding does not have.
    "22P05": (re.compile(r"json\w*"), Fault.VALUE, Fault.UNKNOWN),
    # A cached plan whose columns have changed; otherwise a feature that the server does not have.
    "0A000": (re.compile(r"RevalidateCachedQuery"), Fault.SESSION, Fault.UNKNOWN),
}
# libpq keeps no SQLSTATE of a refused connection. Therefore the server's messages of classes 28 and 3D are matched, and
# libpq's messages about a server that is not the expected one.
_REFUSED_FOR_GOOD = re.compile(
    r"FATAL: .*(authentication failed|no pg_hba\.conf entry|(role|database) .* does not exist|not permitted to log in)"
    r"|certificate verify failed|does not match host name|certificate file .* does not exist|does not support SSL"
)


def fault_of(error: BaseException) -> Fault | None:
    """Return the fault of an error of Postgres; None if it is not a psycopg.Error."""
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate
    if state is None:
        return _without_state(error)
    if state in _BY_FUNCTION:
        functions, fault, other_fault = _BY_FUNCTION[state]
        return fault if functions.fullmatch(error.diag.source_function or "") else other_fault
    return _FAULTS.get(state) or _FAULTS.get(state[:2], Fault.UNKNOWN)


def _without_state(error: psycopg.Error) -> Fault:
    """Return the fault of an error that psycopg or libpq raised without a response of the server."""
    if isinstance(error, UnsuitableServerError):
        return Fault.FATAL
    if isinstance(error, psycopg.DataError):
        return Fault.VALUE
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return Fault.FATAL if _REFUSED_FOR_GOOD.search(str(error)) else Fault.SESSION
    return Fault.UNKNOWN


def is_about_data(error: BaseException) -> bool:
    """Say whether a parameter or a row is at fault, not the session. Smaller batches then find the row at fault."""
    return fault_of(error) in {Fault.VALUE, Fault.ROW}


def is_transient(error: BaseException) -> bool:
    """Say whether the same statements may succeed on a new session."""
    return fault_of(error) in {Fault.SESSION, Fault.UNKNOWN}


def is_unknown(error: BaseException) -> bool:
    """Say whether this module does not know the code. The number of retries must then be bounded."""
    return fault_of(error) is Fault.UNKNOWN


def is_bad_value(error: BaseException) -> bool:
    """Say whether a value cannot be stored, such as a NUL in a text or a number out of range."""
    return fault_of(error) is Fault.VALUE


def is_fatal(error: BaseException) -> bool:
    """Say whether no retry and no other record can succeed, as with a missing table or a wrong password."""
    return fault_of(error) is Fault.FATAL


def names_unknown_order(error: BaseException) -> bool:
    """Say whether a row was refused because its order does not exist."""
    return isinstance(error, psycopg.errors.ForeignKeyViolation) and (error.diag.constraint_name or "").endswith(
        "_order_id_fkey"
    )
