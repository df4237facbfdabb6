"""A payment provider over HTTP: the client of the protocol in contracts/payment-provider.openapi.yaml (P2).

If an answer does not match the protocol exactly, the call is unanswered: it is unknown whether the provider acted, and
the worker retries with the same key. The client itself never repeats a request and never follows a redirect.
"""

import json
import re
import ssl
from collections.abc import Callable
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from orderstream.domain.payment import Authorized, Charge, Declined, NothingToVoid, Pending, Voided
from orderstream.payment_worker.providers.protocol import CallContext, ProviderRefusedError, ProviderUnavailableError
from orderstream.telemetry.tracing import TraceContext

AUTHORIZE_PATH = "/v1/payments"
VOID_PATH = "/v1/payments/{key}/void"
"""The paths as spans show them, without the key."""
BODY_MAX_BYTES = 65_536
HEADER_FIELD_MAX_BYTES = 8_190
HEADER_FIELDS_MAX = 128
RETRY_AFTER_MAX_SECONDS = 3_600.0
KEEP_ALIVE_SECONDS = 4.0
"""How long an idle connection is kept. It is shorter than in common servers, which close theirs after 5 s or more."""
CONNECT_SHARE = 0.5
"""The part of a call's time in which its connection must be made."""
REASON_MAX_CHARACTERS = 200

_AMOUNT = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,4})?", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)
_FIELD_VALUE = re.compile(r"[ -~]+")

T = TypeVar("T")


class _Request(Struct):
    """The body of a request to authorize."""

    amount: str
    currency: str


class _PaymentAnswer(Struct):
    """An answer to a request to authorize. A key that was voided before it was used has no amount."""

    key: str
    status: Literal["authorized", "declined", "pending", "voided"]
    amount: str | None = None
    currency: str | None = None


class _VoidAnswer(Struct):
    key: str
    status: Literal["voided", "nothing_to_void"]


class _Problem(Struct):
    """The parts of an error's body that are logged."""

    title: str = ""
    detail: str = ""


_encode = msgspec.json.Encoder().encode
_decode_payment = msgspec.json.Decoder(_PaymentAnswer).decode
_decode_void = msgspec.json.Decoder(_VoidAnswer).decode
_decode_problem = msgspec.json.Decoder(_Problem).decode


def _check_members(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("an object has two members of one name")


_check_json = json.JSONDecoder(object_pairs_hook=_check_members).decode


class HttpPaymentProvider:
    """Calls a payment provider at `url`, over at most `pool_size` connections.

    `tls` is the context for a URL that begins with https://. Proxies of the environment are not used.
    """

    def __init__(self, url: str, pool_size: int, api_key: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._payments_text = url.rstrip("/") + "/v1/payments"
        self._payments = URL(self._payments_text)
        self._pool_size = pool_size
        self._tls = tls
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "orderstream"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None

    async def authorize(self, charge: Charge, call: CallContext) -> Authorized | Declined | Pending:
        """Send the charge and return its outcome.

        The answer `voided` is Declined: the provider holds nothing for this key, and never will. A worker gets it if
        the provider voided the payment itself, or if the order was aborted meanwhile. In the second case the worker
        drops the outcome, because the payment is not PENDING any more.
        """
        body = _encode(_Request(f"{charge.amount:f}", charge.currency))
        headers = {"Idempotency-Key": charge.order_id, "Content-Type": "application/json"}
        self._describe(call, AUTHORIZE_PATH)
        answer = _decoded(_decode_payment, await self._post(self._payments, headers, body, call))
        _check_key(answer.key, charge.order_id)
        if answer.status == "voided":
            return Declined()
        if answer.currency != charge.currency or not _is_amount(answer.amount, charge.amount):
            raise ProviderUnavailableError("the answer is for another amount or currency")
        match answer.status:
            case "authorized":
                return Authorized()
            case "declined":
                return Declined()
            case "pending":
                return Pending()

    async def void(self, order_id: str, call: CallContext) -> Voided | NothingToVoid:
        """Void the key and return the outcome."""
        url = URL(f"{self._payments_text}/{quote(order_id, safe='')}/void", encoded=True)
        self._describe(call, VOID_PATH)
        answer = _decoded(_decode_void, await self._post(url, {}, None, call))
        _check_key(answer.key, order_id)
        return Voided() if answer.status == "voided" else NothingToVoid()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, url: URL, headers: dict[str, str], body: bytes | None, call: CallContext) -> bytes:
        """Send one request and return the body of an answer with status 200.

        Raises ProviderRefusedError if the provider certainly did not act, and ProviderUnavailableError otherwise.
        """
        _add_trace(headers, call.trace)
        limits = _limits(call.timeout_seconds)
        try:
            async with self._pool().post(
                url, headers=headers, data=body, timeout=limits, allow_redirects=False
            ) as response:
                if call.span is not None:
                    call.span.set({"http.response.status_code": response.status})
                if response.version != aiohttp.HttpVersion11:
                    # A body of HTTP/1.0 may end with the connection, so that a part of it looks like all of it.
                    raise ProviderUnavailableError("the answer is not of HTTP/1.1")
                if response.status in (429, 503):
                    raise ProviderRefusedError(f"status {response.status}", _retry_after_seconds(response))
                content = await _content(response)
                if response.status == 200:
                    return content
                raise _error(response.status, content)
        except aiohttp.ConnectionTimeoutError:
            raise ProviderRefusedError(f"no connection within {limits.connect:g} s") from None
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise ProviderRefusedError(_short(f"no connection: {error}")) from error
        except TimeoutError:
            raise ProviderUnavailableError(f"no answer within {limits.total:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderUnavailableError(_short(f"no usable answer: {error!r}")) from error

    def _describe(self, call: CallContext, path: str) -> None:
        """Describe the request in the span of the call, by the conventions of OpenTelemetry for HTTP clients."""
        if call.span is None:
            return
        call.span.name = f"POST {path}"
        url = self._payments
        call.span.set({"http.request.method": "POST", "url.template": path, "url.scheme": url.scheme})
        if url.host is not None and url.port is not None:
            call.span.set({"server.address": url.host, "server.port": url.port})

    def _pool(self) -> aiohttp.ClientSession:
        """Return the session. The first call makes it, because a session belongs to the running event loop."""
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=self._pool_size,
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                ssl=self._tls or True,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                read_bufsize=BODY_MAX_BYTES,
                max_line_size=HEADER_FIELD_MAX_BYTES,
                max_field_size=HEADER_FIELD_MAX_BYTES,
                max_headers=HEADER_FIELDS_MAX,
            )
        return self._session


@lru_cache(maxsize=16)
def _limits(timeout_seconds: float) -> aiohttp.ClientTimeout:
    """Return the limits of a call. aiohttp would round a timeout above `ceil_threshold` up to full seconds."""
    return aiohttp.ClientTimeout(timeout_seconds, timeout_seconds * CONNECT_SHARE, ceil_threshold=timeout_seconds + 1)


def _add_trace(headers: dict[str, str], trace: TraceContext) -> None:
    """Add the trace. A value that cannot stand in a header field is left out."""
    if trace.traceparent and _FIELD_VALUE.fullmatch(trace.traceparent):
        headers["traceparent"] = trace.traceparent
        if trace.tracestate and _FIELD_VALUE.fullmatch(trace.tracestate):
            headers["tracestate"] = trace.tracestate


async def _content(response: aiohttp.ClientResponse) -> bytes:
    """Return the body as it was sent. Raises ProviderUnavailableError if it is too large or compressed."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ProviderUnavailableError(f"status {response.status} with a compressed body, which was not requested")
    content = bytearray()
    while chunk := await response.content.readany():
        content += chunk
        if len(content) > BODY_MAX_BYTES:
            raise ProviderUnavailableError(f"status {response.status} with a body larger than {BODY_MAX_BYTES} bytes")
    return bytes(content)


def _error(status: int, content: bytes) -> ProviderRefusedError | ProviderUnavailableError:
    """Return the error for a status other than 200, 429 and 503, with the provider's explanation if it has one.

    401 promises that the provider did not act. It concerns every call, so it must not use up the attempts of orders.
    """
    reason = f"status {status}"
    try:
        problem = _decode_problem(content)
    except (msgspec.DecodeError, RecursionError):
        problem = _Problem()
    if explanation := problem.detail or problem.title:
        reason += f": {explanation}"
    return ProviderRefusedError(_short(reason)) if status == 401 else ProviderUnavailableError(_short(reason))


def _decoded(decode: Callable[[bytes], T], content: bytes) -> T:
    """Decode an answer. Raises ProviderUnavailableError if it is not valid, or has two members of one name."""
    try:
        answer = decode(content)
        _check_json(content.decode())
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProviderUnavailableError(_short(f"the answer is not valid: {error}")) from error
    return answer


def _check_key(key: str, wanted: str) -> None:
    if key != wanted:
        raise ProviderUnavailableError(_short(f"the answer is for another key: {key!r}"))


def _is_amount(text: str | None, amount: Decimal) -> bool:
    return text is not None and _AMOUNT.fullmatch(text) is not None and Decimal(text) == amount


def _retry_after_seconds(response: aiohttp.ClientResponse) -> float:
    """Return the seconds of `Retry-After`, at most RETRY_AFTER_MAX_SECONDS. Without a valid value, return 0.

    A date counts from the answer's own `Date`, so that the clock of this machine does not matter.
    """
    value = response.headers.get("Retry-After", "")
    if _SECONDS.fullmatch(value):
        return min(float(value), RETRY_AFTER_MAX_SECONDS)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(response.headers.get("Date", ""))
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(wait.total_seconds(), 0.0), RETRY_AFTER_MAX_SECONDS)


def _short(reason: str) -> str:
    return reason if len(reason) <= REASON_MAX_CHARACTERS else reason[: REASON_MAX_CHARACTERS - 1] + "…"
