"""The error responses of the API, as problem details (RFC 9457). Each kind of problem has a stable `type`."""

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Struct, UnsetType

Headers = Sequence[tuple[bytes, bytes]]

CONTENT_TYPE = b"application/problem+json"
RETRY_AFTER_SECONDS = 1
RETRY_AFTER_FULL_OUTBOX_SECONDS = 5


_NO_STORE = (b"cache-control", b"no-store")
"""Without this field, a cache may store a 404 or 405 for a time that it guesses (RFC 9110, 15.1)."""

_NOTHING_STORED = "This request stored nothing."


class Violation(Struct, frozen=True):
    """One error in a body: its place, as a JSON pointer (RFC 6901), and its description."""

    pointer: str
    detail: str


class ProblemBody(Struct, frozen=True, kw_only=True, rename="camel"):
    """The body of every response with status 400 and above. `errors` lists all violations."""

    type: str
    title: str
    status: int
    detail: str
    trace_id: str
    errors: tuple[Violation, ...] | UnsetType = UNSET


_encode = msgspec.json.Encoder().encode


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """An error response. A handler raises it to end its request."""

    def __init__(
        self,
        status: int,
        name: str,
        title: str,
        detail: str,
        *,
        errors: Sequence[Violation] = (),
        headers: Headers = (),
    ) -> None:
        super().__init__(f"{status} {name}: {detail}")
        self.status = status
        self.name = name
        self.title = title
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = tuple(headers)

    def body(self, trace_id: str) -> bytes:
        """Return the problem as JSON, with the trace id of its request."""
        return _encode(
            ProblemBody(
                type=f"urn:orderstream:problem:{self.name}",
                title=self.title,
                status=self.status,
                detail=self.detail,
                trace_id=trace_id,
                errors=self.errors or UNSET,
            )
        )


def invalid_order(errors: Sequence[Violation]) -> Problem:
    """400: the body is not a valid order."""
    return Problem(400, "invalid-order", "The order is not valid", _summary(errors), errors=errors)


def _summary(errors: Sequence[Violation]) -> str:
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{errors[0].pointer or 'The body'} {errors[0].detail}{more}."


def invalid_idempotency_key(characters_max: int) -> Problem:
    """400: the Idempotency-Key field is not a valid key."""
    detail = f"Idempotency-Key must be given once, as 1 to {characters_max} visible ASCII characters."
    return Problem(400, "invalid-idempotency-key", "The idempotency key is not valid", detail)


def malformed_request(detail: str = "The request is not valid HTTP.") -> Problem:
    """400: the bytes are not HTTP, or break a rule of HTTP."""
    return Problem(400, "malformed-request", "The request is malformed", detail)


def not_found(what: str) -> Problem:
    """404: the route or the order does not exist."""
    return Problem(404, "not-found", "Not found", f"There is no such {what}.", headers=[_NO_STORE])


def method_not_allowed(allowed: Sequence[str]) -> Problem:
    """405: the route does not support this method."""
    allow = ", ".join(allowed)
    detail = f"Allowed methods: {allow}."
    return Problem(
        405, "method-not-allowed", "Method not allowed", detail, headers=[(b"allow", allow.encode()), _NO_STORE]
    )


def request_timeout(seconds: float) -> Problem:
    """408: the client took too long to send its request."""
    return Problem(
        408, "request-timeout", "The request took too long", f"The request did not arrive within {seconds:g} s."
    )


def order_failed() -> Problem:
    """409: the order is FAILED and cannot be cancelled."""
    return Problem(409, "order-failed", "The order has failed", "A failed order cannot be cancelled.")


def precondition_failed() -> Problem:
    """412: If-Match or If-None-Match does not allow the current version. Nothing was changed."""
    detail = "If-Match or If-None-Match does not allow the current version."
    return Problem(412, "precondition-failed", "There is another version", detail)


def body_too_large(limit_bytes: int) -> Problem:
    """413: the body is larger than an order may be."""
    return Problem(413, "body-too-large", "The body is too large", f"A body may have at most {limit_bytes} bytes.")


def target_too_long(limit_bytes: int) -> Problem:
    """414: the path and query of the request are too long."""
    detail = f"Path and query may have at most {limit_bytes} bytes."
    return Problem(414, "target-too-long", "The path is too long", detail)


def unsupported_media_type() -> Problem:
    """415: the body is not declared as uncompressed JSON in UTF-8."""
    detail = "Send content-type: application/json, in UTF-8 and not compressed."
    headers = [(b"accept", b"application/json"), (b"accept-encoding", b"identity")]
    return Problem(415, "unsupported-media-type", "Unsupported media type", detail, headers=headers)


def expectation_failed() -> Problem:
    """417: the Expect field is not 100-continue."""
    return Problem(417, "expectation-failed", "The expectation failed", "Expect may only be 100-continue.")


def misdirected_request() -> Problem:
    """421: the request target is a URI whose scheme is not http."""
    detail = "The scheme of the request target must be http."
    return Problem(421, "misdirected-request", "The request is misdirected", detail)


def idempotency_key_reused() -> Problem:
    """422: an earlier request used the key for a different order. Nothing was stored."""
    detail = "This Idempotency-Key was used for another order. Use a new key, or send the same order."
    return Problem(422, "idempotency-key-reused", "The idempotency key belongs to another order", detail)


def head_too_large(limit_bytes: int) -> Problem:
    """431: the request line and the header fields are too large."""
    detail = f"Request line and header fields may have at most {limit_bytes} bytes."
    return Problem(431, "head-too-large", "The request head is too large", detail)


def too_many_fields(limit: int) -> Problem:
    """431: there are too many header fields, or trailer fields after a chunked body."""
    return Problem(431, "too-many-fields", "There are too many fields", f"A request may have at most {limit} fields.")


def internal_error() -> Problem:
    """500: a bug. The log has the error under the same trace id."""
    return Problem(500, "internal-error", "Internal error", "The server failed to process the request.")


def not_implemented(detail: str) -> Problem:
    """501: the server does not implement the method or the transfer coding."""
    return Problem(501, "not-implemented", "Not implemented", detail)


def unavailable(detail: str) -> Problem:
    """503: there is no room, or the database is down. The client should try again."""
    headers = [(b"retry-after", str(RETRY_AFTER_SECONDS).encode())]
    return Problem(503, "unavailable", "Try again", detail, headers=headers)


def queue_full() -> Problem:
    """503: too many orders wait to be stored. An earlier request with the same key may still be stored."""
    return unavailable(f"Too many orders are waiting to be stored. {_NOTHING_STORED}")


def bodies_full() -> Problem:
    """503: the arriving bodies use all of their memory. The key of this request was not looked up."""
    return unavailable(f"Too many large requests are arriving. {_NOTHING_STORED}")


def unknown_whether_stored() -> Problem:
    """503: Postgres did not answer in time, so the order may be stored or not."""
    return unavailable(
        "The order was not confirmed in time. It may be stored or not."
        " If you sent an Idempotency-Key, you can safely send the order again."
    )


def outbox_full() -> Problem:
    """503: Kafka accepts no events, and too many events wait for it. An earlier request may still be stored."""
    headers = [(b"retry-after", str(RETRY_AFTER_FULL_OUTBOX_SECONDS).encode())]
    detail = f"Too many events are waiting to be published. {_NOTHING_STORED}"
    return Problem(503, "outbox-full", "Try again later", detail, headers=headers)


def version_not_supported() -> Problem:
    """505: the HTTP version is neither 1.0 nor 1.1."""
    return Problem(505, "version-not-supported", "HTTP version not supported", "Send HTTP/1.1.")
