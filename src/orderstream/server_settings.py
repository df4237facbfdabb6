"""Checks of the settings that name PostgreSQL, Redis and Kafka.

Each check returns the setting, or raises ValueError with a message that repeats no password.
"""

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

POSTGRES_URL = "postgresql://app@127.0.0.1:5432/orders"
_PORT_MAX = 65_535
_BROKER = re.compile(r"(?:[^\s,:/@\[\]]+|\[[0-9A-Fa-f:.]+(?:%\w+)?\]):([0-9]{1,5})")
_REDIS_SUPPORTED = "db, username, password, client_name"
_REDIS_REFUSED = (
    *("decode_responses", "encoding", "encoding_errors", "protocol", "legacy_responses", "socket_read_size"),
    *("retry_on_timeout", "retry_on_error", "health_check_interval", "max_connections", "socket_keepalive"),
    *("ssl_include_verify_flags", "ssl_exclude_verify_flags"),
)
"""Options of redis-py that change the results or the response time of the cache. Error messages name only these
options, because any other name may be a part of a password.
"""
_REDIS_TLS = (
    *("ssl_keyfile", "ssl_certfile", "ssl_password", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_ciphers"),
    *("ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version"),
)
_REDIS_VALUES = {
    "db": re.compile("[0-9]+"),
    "client_name": re.compile("[!-~]+"),
    "ssl_cert_reqs": re.compile("none|optional|required"),
    "ssl_check_hostname": re.compile("true|false|yes|no|1|0", re.IGNORECASE),
    "ssl_min_version": re.compile("77[0-2]"),
}
"""Valid values of options. redis-py would refuse another value only at its first use, or misinterpret it."""
_QUOTED = re.compile(r'".*"', re.DOTALL)
"""The parts of a connection string that libpq repeats in its error message."""

_KAFKA_OURS = (
    *("acks", "request.required.acks", "enable.idempotence", "transactional.id"),
    *("enable.auto.commit", "enable.auto.offset.store", "auto.offset.reset", "isolation.level", "enable.partition.eof"),
    *("group.id", "group.instance.id", "allow.auto.create.topics"),
)
"""Options of librdkafka that could lose or skip records. They are refused."""


def parse_options(value: Any) -> Any:
    """Convert `a=1,b=2` or a JSON object to a dictionary. The validator refuses other values."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if any(not separator for _, separator, _ in pairs):
        raise ValueError("expected name=value pairs separated by commas")
    return {name.strip(): setting.strip() for name, _, setting in pairs}


def kafka_options(options: dict[str, str]) -> dict[str, str]:
    """Return the options. Raises ValueError if one of them must have OrderStream's own value."""
    if given := [name for name in _KAFKA_OURS if name in options]:
        raise ValueError(f"{', '.join(given)} cannot be set: OrderStream needs its own value so that no order is lost")
    return options


def postgres(value: str) -> str:
    """Check a connection string with libpq. The default is not checked, so that not every process loads psycopg."""
    if value == POSTGRES_URL:
        return value
    from psycopg import ProgrammingError  # noqa: PLC0415 - see above
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    try:
        given = str(conninfo_to_dict(value).get("port", ""))
    except ProgrammingError as error:
        why = _QUOTED.sub("…", str(error)).strip()
        raise ValueError(f"expected postgresql://user@host:port/name, or name=value pairs; libpq says: {why}") from None
    if not all(_is_port(port.strip()) for port in given.split(",") if port):
        raise ValueError(f"its port is not a number from 1 to {_PORT_MAX}")
    return value


def redis(value: str) -> str:
    """Refuse a URL that redis-py would refuse, or that the cache does not support.

    redis-py itself is not used, because only two of the services need its memory.
    """
    if not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError(
            "it must begin with redis://, rediss:// or unix://, and name one server, not a cluster or sentinel"
        )
    try:
        url = urlsplit(value)
        _ = url.port
    except ValueError:
        raise ValueError(
            "its host and port cannot be read; name one server, and write special characters of a password as %XX"
        ) from None
    if url.scheme == "unix":
        if not url.path:
            raise ValueError("it must name the path of a socket")
    elif not re.fullmatch(r"/?[0-9]*/?", url.path):
        raise ValueError("its path must be the number of a database")
    elif "," in (url.hostname or ""):
        raise ValueError("it must name one server; Redis Cluster, Sentinel and several hosts are not supported")
    for name, (first, *_) in parse_qs(url.query).items():
        _redis_option(name, first, tls=url.scheme == "rediss")
    return value


def _redis_option(name: str, value: str, *, tls: bool) -> None:
    """Refuse an option in the query that could change the results or the response time of the cache."""
    if name in ("timeout", "socket_timeout", "socket_connect_timeout"):
        raise ValueError(f"{name} is not supported; CACHE_BUDGET_SECONDS is the limit for every response of Redis")
    if name not in (*_REDIS_SUPPORTED.split(", "), *_REDIS_TLS):
        named = name if name in _REDIS_REFUSED else "an option in it"
        raise ValueError(
            f"{named} is not supported; supported are {_REDIS_SUPPORTED} and, with rediss://, the usual ssl_ options"
        )
    if name in _REDIS_TLS and not tls:
        raise ValueError(f"{name} needs rediss://")
    if (allowed := _REDIS_VALUES.get(name)) is not None and not allowed.fullmatch(value):
        raise ValueError(f"{name} has an invalid value")


def brokers(value: str) -> str:
    brokers = [broker.strip() for broker in value.split(",")]
    matches = [_BROKER.fullmatch(broker) for broker in brokers]
    if not all(match and _is_port(match[1]) for match in matches):
        raise ValueError("expected host:port pairs separated by commas, an IPv6 address in brackets")
    return ",".join(brokers)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 1 <= int(text) <= _PORT_MAX
