"""Describes calls to Postgres and Redis for spans, by the semantic conventions of OpenTelemetry for databases.

A description holds no statement and no parameter. It names the server as the settings do.
"""

from typing import Literal
from urllib.parse import unquote, urlsplit

from psycopg.conninfo import conninfo_to_dict

from orderstream.telemetry.tracing import Operation, Value

POSTGRES_PORT = 5432
REDIS_PORT = 6379
TRANSACTION = "TRANSACTION"
"""The name of an operation of several statements."""


def summary(*statements: tuple[str, str]) -> str:
    """Return the summary of statements, each given as its operation and its tables."""
    return " ".join(f"{operation} {tables}" for operation, tables in statements)


def postgres(url: str, summary: str, operation: str = TRANSACTION) -> Operation:
    """Describe a statement or transaction on the database `url`. `summary` names the statements and their tables."""
    given = conninfo_to_dict(url)
    host, port = str(given.get("host") or ""), str(given.get("port") or POSTGRES_PORT)
    attributes = _database("postgresql", str(given.get("dbname") or given.get("user") or ""), operation, summary)
    if host and "," not in host:
        attributes["server.address"] = host
        if port.isdecimal():
            attributes["server.port"] = int(port)
    return Operation(summary, "CLIENT", attributes)


Script = Literal["look_up", "fill", "bar", "delete"]


def redis(url: str, script: Script) -> Operation:
    """Describe the run of one of the scripts of the cache on the server `url`."""
    parts = urlsplit(url)
    is_socket = parts.scheme == "unix"
    summary = f"EVAL {script}"
    number = "" if is_socket else parts.path.strip("/")
    attributes = _database("redis", number or "0", "EVAL", summary) | {"db.stored_procedure.name": script}
    attributes["server.address"] = unquote(parts.path) if is_socket else parts.hostname or "localhost"
    if not is_socket:
        attributes["server.port"] = parts.port or REDIS_PORT
    return Operation(summary, "CLIENT", attributes)


def _database(system: str, namespace: str, operation: str, summary: str) -> dict[str, Value]:
    attributes: dict[str, Value] = {
        "db.system.name": system,
        "db.operation.name": operation,
        "db.query.summary": summary,
    }
    if namespace:
        attributes["db.namespace"] = namespace
    return attributes
