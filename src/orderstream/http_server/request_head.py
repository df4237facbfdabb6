"""Checks the head of a request: the rules of RFC 9110 and RFC 9112 that llhttp leaves to the server."""

import re
from collections.abc import Sequence

from msgspec import Struct

from orderstream.http_server import problems

HEAD_MAX_BYTES = 64 * 1024
FIELDS_MAX = 100
TARGET_MAX_BYTES = 8 * 1024
"""RFC 9112 (3) recommends at least 8,000 bytes for the request line."""
LENGTH_MAX_DIGITS = 20
"""Digits of a Content-Length, with leading zeros. 2^64 has 20. Python cannot parse a number of thousands of digits."""

_READ = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))

Fields = Sequence[tuple[bytes, bytes]]

_HOST = rb"(?:\[(?:[0-9A-Fa-f:.]+|[vV][0-9A-Fa-f]+\.[\w.~!$&'()*+,;=:-]+)\]|(?:[\w.~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)"
_is_host = re.compile(_HOST + rb"(?::[0-9]*)?").fullmatch
_split_absolute = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(/[^?]*)?(?:\?(.*))?").fullmatch
_UNRESERVED = re.compile("%(?:2[DE]|3[0-9]|[46][1-9A-F]|[57][0-9A]|5F|7E)", re.IGNORECASE)
_is_request_line = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.[01]\r\n").match


class RequestHead(Struct):
    """The head of a request, except for its fields. `body_bytes` is 0 for a chunked body."""

    method: str
    http_version: str
    raw_path: bytes
    path: str
    query: bytes
    body_bytes: int
    chunked: bool
    expects_continue: bool


def read_head(method: str, target: bytes, version: str, fields: Fields) -> RequestHead:
    """Check a head. The field names must be in lower case. Raises Problem 400, 417, 421, 501 or 505."""
    if version == "0.9":
        raise problems.malformed_request("The request line has no version.")
    if version not in ("1.1", "1.0"):
        raise problems.version_not_supported()
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    expectations: list[bytes] = []
    for name, value in fields:
        if name not in _READ:
            continue
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
        else:
            expectations.append(value)
    _check_host(hosts, version)
    chunked = bool(codings) and _is_chunked(codings, version)
    raw_path, query = read_target(method, target)
    path = raw_path.decode("ascii")
    return RequestHead(
        method=method,
        http_version=version,
        raw_path=raw_path,
        path=_UNRESERVED.sub(_unquoted, path) if "%" in path else path,
        query=query,
        body_bytes=_body_bytes(lengths, chunked=chunked),
        chunked=chunked,
        expects_continue=bool(expectations) and version == "1.1" and _expects_continue(expectations),
    )


def _unquoted(match: re.Match[str]) -> str:
    """Decode an unreserved character, which means the same in both forms (RFC 3986, 2.3).

    Other characters stay encoded. An encoded slash does not separate segments (2.2).
    """
    return chr(int(match[0][1:], 16))


def _check_host(hosts: Sequence[bytes], version: str) -> None:
    """Raise Problem 400 if Host is missing, repeated or malformed (RFC 9112, 3.2). An empty Host is valid."""
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise problems.malformed_request("HTTP/1.1 requires exactly one Host field.")
    if hosts and not _is_host(hosts[0]):
        raise problems.malformed_request("The Host field is not a valid host.")


def _is_chunked(values: Sequence[bytes], version: str) -> bool:
    """Check Transfer-Encoding (RFC 9112, 6.1 and 6.3). The length is only clear if `chunked` comes once, at the end."""
    codings = [coding.strip(b" \t").lower() for coding in b",".join(values).split(b",")]
    if version == "1.0":
        raise problems.malformed_request("HTTP/1.0 does not allow Transfer-Encoding.")
    if codings[-1] != b"chunked" or b"chunked" in codings[:-1]:
        raise problems.malformed_request("Transfer-Encoding must end in chunked, once.")
    if len(codings) > 1:
        raise problems.not_implemented("The only supported transfer coding is chunked.")
    return True


def _body_bytes(lengths: Sequence[bytes], *, chunked: bool) -> int:
    if not lengths:
        return 0
    if chunked or len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > LENGTH_MAX_DIGITS:
        raise problems.malformed_request("The length of the body is not clear.")
    return int(lengths[0])


def _expects_continue(values: Sequence[bytes]) -> bool:
    """Check Expect (RFC 9110, 10.1.1). Empty elements of the list are ignored (5.6.1.2)."""
    expected = {value.strip(b" \t").lower() for value in b",".join(values).split(b",")} - {b""}
    if not expected <= {b"100-continue"}:
        raise problems.expectation_failed()
    return bool(expected)


def read_target(method: str, target: bytes) -> tuple[bytes, bytes]:
    """Return the path and the query of a request target (RFC 9112, 3.2). Raises Problem 400 or 421."""
    if b"#" in target:
        raise problems.malformed_request("A request target must not have a fragment.")
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
        return path, query
    if target == b"*" and method == "OPTIONS":
        return target, b""
    parts = _split_absolute(target)
    if parts is None:
        raise problems.malformed_request("The request target must be a path or a URI.")
    scheme, authority, path, query = parts.groups(b"")
    if scheme.lower() != b"http":
        raise problems.misdirected_request()
    if authority.startswith(b":") or not authority or not _is_host(authority):
        raise problems.malformed_request("The authority of the request target is not a valid host.")
    return path or (b"*" if method == "OPTIONS" and not query else b"/"), query


def unknown_method(head: bytes) -> bool:
    """Return whether a head that llhttp rejected has a well-formed request line, so that only its method is unknown."""
    return _is_request_line(head.lstrip(b"\r\n")) is not None
