"""What the API answers when it cannot do as asked: problem details (RFC 9457), each kind with a stable `type`."""

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Struct, UnsetType

Headers = Sequence[tuple[bytes, bytes]]

CONTENT_TYPE = b"application/problem+json"
RETRY_AFTER_SECONDS = 1
RETRY_AFTER_FULL_OUTBOX_SECONDS = 5


_NO_STORE = (b"cache-control", b"no-store")
"""Caches may keep a 404 or 405 by a guess of theirs (RFC 9110, 15.1), unless they are told not to."""

_NOTHING_STORED = "This request stored nothing."


class Violation(Struct, frozen=True):
    """One thing that is wrong with a body: where, as a JSON pointer (RFC 6901), and what."""

    pointer: str
    detail: str


class ProblemBody(Struct, frozen=True, kw_only=True, rename="camel"):
    """The body of every answer of status 400 and above; `errors` has every violation there is."""

    type: str
    title: str
    status: int
    detail: str
    trace_id: str
    errors: tuple[Violation, ...] | UnsetType = UNSET


_encode = msgspec.json.Encoder().encode


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """Ends a request with this answer."""

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
        """Return the JSON of this problem as it befell one request."""
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
    """400: the body is not an order."""
    return Problem(400, "invalid-order", "The order is not valid", _summary(errors), errors=errors)


def _summary(errors: Sequence[Violation]) -> str:
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{errors[0].pointer or 'The body'} {errors[0].detail}{more}."


def invalid_idempotency_key(characters_max: int) -> Problem:
    """400: the header Idempotency-Key is there and cannot be a key."""
    detail = f"Idempotency-Key must be given once, as 1 to {characters_max} visible ASCII characters."
    return Problem(400, "invalid-idempotency-key", "The idempotency key is not valid", detail)


def malformed_request(detail: str = "It cannot be read as HTTP.") -> Problem:
    """400: the bytes are not HTTP, or break one of its rules."""
    return Problem(400, "malformed-request", "The request is malformed", detail)


def not_found(what: str) -> Problem:
    """404: there is no such route or order."""
    return Problem(404, "not-found", "Not found", f"There is no such {what}.", headers=[_NO_STORE])


def method_not_allowed(allowed: Sequence[str]) -> Problem:
    """405: the route exists, but not for this method."""
    allow = ", ".join(allowed)
    detail = f"Allowed here: {allow}."
    return Problem(
        405, "method-not-allowed", "Method not allowed", detail, headers=[(b"allow", allow.encode()), _NO_STORE]
    )


def request_timeout(seconds: float) -> Problem:
    """408: the client took too long to send its request."""
    return Problem(408, "request-timeout", "The request took too long", f"It did not arrive within {seconds:g} s.")


def order_failed() -> Problem:
    """409: the order has FAILED; there is nothing left to cancel."""
    return Problem(409, "order-failed", "The order has failed", "A failed order cannot be cancelled.")


def precondition_failed() -> Problem:
    """412: If-Match or If-None-Match does not allow the version there is; nothing was done."""
    detail = "If-Match or If-None-Match does not allow the version that there is."
    return Problem(412, "precondition-failed", "There is another version", detail)


def body_too_large(limit_bytes: int) -> Problem:
    """413: the body is longer than an order may be."""
    return Problem(413, "body-too-large", "The body is too large", f"It may have {limit_bytes} bytes at most.")


def target_too_long(limit_bytes: int) -> Problem:
    """414: the path and query of the request are longer than any honest ones."""
    return Problem(414, "target-too-long", "The path is too long", f"It may have {limit_bytes} bytes at most.")


def unsupported_media_type() -> Problem:
    """415: the body is not declared to be plain JSON in UTF-8."""
    detail = "Send content-type: application/json, in UTF-8 and not compressed."
    headers = [(b"accept", b"application/json"), (b"accept-encoding", b"identity")]
    return Problem(415, "unsupported-media-type", "Unsupported media type", detail, headers=headers)


def expectation_failed() -> Problem:
    """417: the field Expect asks for something else than 100-continue."""
    return Problem(417, "expectation-failed", "The expectation failed", "Expect may only be 100-continue.")


def misdirected_request() -> Problem:
    """421: the request target is a URI of another scheme than http."""
    return Problem(421, "misdirected-request", "The request is misdirected", "The scheme of its target must be http.")


def idempotency_key_reused() -> Problem:
    """422: the key was accepted before with another order; nothing was done."""
    detail = "This Idempotency-Key was used for another order. Use a new key, or send the same order."
    return Problem(422, "idempotency-key-reused", "The idempotency key belongs to another order", detail)


def head_too_large(limit_bytes: int) -> Problem:
    """431: request line and headers are longer than any honest ones."""
    detail = f"Request line and headers may have {limit_bytes} bytes at most."
    return Problem(431, "head-too-large", "The request head is too large", detail)


def too_many_fields(limit: int) -> Problem:
    """431: there are more header fields, or fields behind a chunked body, than any honest request has."""
    return Problem(431, "too-many-fields", "There are too many fields", f"A request may have {limit} fields at most.")


def internal_error() -> Problem:
    """500: a bug; the log has it under the same trace id."""
    return Problem(500, "internal-error", "Internal error", "Something went wrong on our side.")


def not_implemented(detail: str) -> Problem:
    """501: a method or a transfer coding that this server does not know."""
    return Problem(501, "not-implemented", "Not implemented", detail)


def unavailable(detail: str) -> Problem:
    """503: no room or no database; asking again is right."""
    headers = [(b"retry-after", str(RETRY_AFTER_SECONDS).encode())]
    return Problem(503, "unavailable", "Try again", detail, headers=headers)


def queue_full() -> Problem:
    """503: as many orders wait to be stored as may. An earlier request with the same key may still be stored."""
    return unavailable(f"Too many orders are waiting to be stored. {_NOTHING_STORED}")


def bodies_full() -> Problem:
    """503: the bodies that are arriving fill the memory they may have. The key of this request was not looked up."""
    return unavailable(f"Too many large requests are arriving. {_NOTHING_STORED}")


def unknown_whether_stored() -> Problem:
    """503: Postgres gave no answer in time, so the order may be stored."""
    return unavailable(
        "The order could not be stored in time, and it is not known whether it will be."
        " With an Idempotency-Key you can safely send it again."
    )


def outbox_full() -> Problem:
    """503: Kafka takes no events, and as many wait for it as may. An earlier request may be stored."""
    headers = [(b"retry-after", str(RETRY_AFTER_FULL_OUTBOX_SECONDS).encode())]
    detail = f"Too many events are waiting to be published. {_NOTHING_STORED}"
    return Problem(503, "outbox-full", "Try again later", detail, headers=headers)


def version_not_supported() -> Problem:
    """505: another version of HTTP than 1.0 and 1.1."""
    return Problem(505, "version-not-supported", "HTTP version not supported", "Send HTTP/1.1.")
