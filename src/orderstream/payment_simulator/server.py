"""The HTTP side of the simulator: the protocol of contracts/payment-provider.openapi.yaml, and the control of faults.

It uses the low-level server of aiohttp, without its router, because the simulator shares two cores with the services.
"""

import asyncio
import hmac
import random
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from urllib.parse import parse_qs

import msgspec
from aiohttp.web import BaseRequest, HTTPRequestEntityTooLarge, Response
from msgspec import Struct

from orderstream.domain import money
from orderstream.payment_simulator.faults import KEY_PATTERN, Draw, Faults, FaultsError, changed
from orderstream.payment_simulator.ledger import Ledger, LedgerFailedError, LedgerFullError
from orderstream.payment_simulator.store import Account, Authorization, KeyReusedError, Payment
from orderstream.telemetry.tracing import Span, TraceContext, Tracer

BODY_MAX_BYTES = 1 << 20
BODY_SECONDS = 10.0
CALLS_MAX = 10_000
"""Calls in progress, slow and hanging ones included."""
HANG_SECONDS = 600.0
HANG_CHECK_SECONDS = 0.5
"""How often a hanging call checks whether its client has left."""
PAGE_MAX = 1_000
PAGE_DEFAULT = 100

_encode = msgspec.json.Encoder(decimal_format="string").encode
_JSON = {"Content-Type": "application/json"}


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """An error response."""

    def __init__(self, status: int, title: str, detail: str = "", retry_after_seconds: int | None = None) -> None:
        super().__init__(f"{status} {title}")
        self.status = status
        self.body = _encode({"type": "about:blank", "title": title, "status": status, "detail": detail or title})
        self.headers = {"Content-Type": "application/problem+json"}
        if retry_after_seconds is not None:
            self.headers["Retry-After"] = str(retry_after_seconds)

    def response(self) -> Response:
        """Return the problem as a response."""
        return Response(status=self.status, body=self.body, headers=self.headers)


class _Charge(Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/payments`."""

    amount: str
    currency: str


_is_key = re.compile(KEY_PATTERN.rstrip("$")).fullmatch
_decode_charge = msgspec.json.Decoder(_Charge).decode


class PaymentServer:
    """Handles each request. Its faults can change while it runs."""

    def __init__(
        self, ledger: Ledger, faults: Faults, tracer: Tracer, api_key: str | None, random_source: random.Random
    ) -> None:
        self._ledger = ledger
        self._random = random_source
        self._tracer = tracer
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()
        self._calls = 0
        self.draw = Draw(faults, random_source)

    async def handle(self, request: BaseRequest) -> Response:
        """Return the response to any request. Never raises."""
        path, _, query = request.raw_path.partition("?")
        segments = path.split("/")[1:]
        if segments in (["livez"], ["readyz"]):
            return Response(text="ok\n")
        if self._calls >= CALLS_MAX:
            return Problem(503, "Too many calls in progress", retry_after_seconds=1).response()
        self._calls += 1
        try:
            return await self._route(request, segments, query)
        except (Problem, KeyReusedError, LedgerFullError, LedgerFailedError) as error:
            return _problem(error).response()
        finally:
            self._calls -= 1

    async def _route(self, request: BaseRequest, segments: list[str], query: str) -> Response:
        method = request.method
        match segments:
            case ["simulator", "faults"]:
                return await self._control(request)
            case ["v1", "payments", *_]:
                self._admit(request)
        match method, segments:
            case "POST", ["v1", "payments"]:
                return await self._authorize(request)
            case "GET", ["v1", "payments"]:
                return await self._page(query)
            case "POST", ["v1", "payments", key, "void"]:
                return await self._void(request, _valid_key(key))
            case "GET", ["v1", "payments", key]:
                return await self._read(key)
            case "GET", ["v1", "payments", key, "history"]:
                return await self._history(key)
            case _, ["v1", "payments"] | ["v1", "payments", _] | ["v1", "payments", _, "void" | "history"]:
                raise Problem(405, "This method is not allowed here")
        raise Problem(404, "There is no such page")

    def _admit(self, request: BaseRequest) -> None:
        """Raise Problem if the provider is down or the API key is wrong."""
        if self.draw.faults.down:
            raise Problem(503, "The provider is down")
        if self._authorization is not None:
            given = request.headers.get("Authorization", "").encode(errors="replace")
            if not hmac.compare_digest(given, self._authorization):
                raise Problem(401, "The API key is missing or wrong")

    async def _authorize(self, request: BaseRequest) -> Response:
        key = _valid_key(request.headers.get("Idempotency-Key", ""))
        body = await _body(request)
        try:
            charge = _decode_charge(body)
            amount = money.in_currency(money.parse(charge.amount, quoted=True), charge.currency)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Problem(400, "The body is not valid", str(error)) from None
        except money.MoneyError as error:
            raise Problem(400, "The amount is not valid", str(error)) from None
        except KeyError:
            raise Problem(400, "The currency is not valid", "currency must be a code of ISO 4217") from None
        span = self._span("POST /v1/payments", request)
        draw = self.draw
        authorization = Authorization(
            key,
            f"{amount:f}",
            charge.currency,
            "declined" if draw.is_declined(key, amount) else "authorized",
            draw.faults.pending_seconds if draw.is_pending(key) else None,
            draw.faults.key_lifetime_seconds,
        )
        return await self._act(request, key, span, lambda: self._ledger.authorize(authorization))

    async def _void(self, request: BaseRequest, key: str) -> Response:
        span = self._span("POST /v1/payments/{key}/void", request)

        async def void() -> dict[str, str]:
            return {"key": key, "status": await self._ledger.void(key)}

        return await self._act(request, key, span, void)

    async def _act(self, request: BaseRequest, key: str, span: Span, act: Callable[[], Awaitable[object]]) -> Response:
        """Change the ledger and answer, with the faults of this call."""
        fate = self.draw.fate(key)
        span.set({"order.id": key, "simulator.fault": fate or "none"})
        try:
            if fate == "refuse":
                raise Problem(429, "Too many requests", retry_after_seconds=self.draw.faults.retry_after_seconds)
            if fate == "hang":
                await _hang(request)
                return _dropped(request)
            if latency_seconds := self.draw.latency_seconds():
                # The ledger changes at the end, even if the client has disconnected, as with a real provider.
                await asyncio.sleep(latency_seconds)
            if fate == "error_before":
                raise Problem(500, "Simulated fault")
            answer = await act()
            if fate == "error_after":
                raise Problem(500, "Simulated fault")
            return _dropped(request) if fate == "drop_after" else _json(answer)
        finally:
            span.end(fate)

    def _span(self, name: str, request: BaseRequest) -> Span:
        headers = request.headers
        return self._tracer.server(name, TraceContext(headers.get("traceparent"), headers.get("tracestate")))

    async def _read(self, key: str) -> Response:
        account = await self._ledger.find(key)
        if account is None:
            raise _unknown_key()
        return _json(_row(account))

    async def _history(self, key: str) -> Response:
        entries = await self._ledger.history(key)
        if entries is None:
            raise _unknown_key()
        rows = [{**msgspec.structs.asdict(entry), "at": _time(entry.at)} for entry in entries]
        return _json({"key": key, "entries": rows})

    async def _page(self, query: str) -> Response:
        parameters = parse_qs(query)
        after = parameters.get("after", [""])[0]
        number = parameters.get("limit", [str(PAGE_DEFAULT)])[0]
        if not (number.isascii() and number.isdecimal() and 1 <= len(number) <= 4 and 1 <= int(number) <= PAGE_MAX):
            raise Problem(400, "The limit is not valid", f"limit must be a number from 1 to {PAGE_MAX}")
        accounts = await self._ledger.page(after, int(number) + 1)
        shown = accounts[: int(number)]
        is_last = len(accounts) == len(shown)
        return _json(
            {"payments": [_row(account) for account in shown], "next": None if is_last else shown[-1].payment.key}
        )

    async def _control(self, request: BaseRequest) -> Response:
        """Return the faults, after the change if the method is PATCH."""
        if request.method == "PATCH":
            try:
                self.draw = Draw(changed(self.draw.faults, await _body(request)), self._random)
            except FaultsError as error:
                raise Problem(400, "The faults are not valid", str(error)) from None
        elif request.method != "GET":
            raise Problem(405, "This method is not allowed here")
        return _json(self.draw.faults)


def _problem(error: Exception) -> Problem:
    """Return the response to an error."""
    match error:
        case Problem():
            return error
        case KeyReusedError():
            return Problem(409, "The key was used for another payment", str(error))
        case LedgerFullError():
            return Problem(503, "Too many calls wait for the ledger", retry_after_seconds=1)
        case _:
            return Problem(500, "The ledger failed", str(error))


def _json(answer: object) -> Response:
    return Response(body=_encode(answer), headers=_JSON)


def _row(account: Account) -> dict[str, object]:
    payment: Payment = account.payment
    return {
        **msgspec.structs.asdict(payment),
        "charges": account.charges,
        "held": f"{account.held:f}",
        "createdAt": _time(account.created_at),
    }


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _unknown_key() -> Problem:
    return Problem(404, "There is no payment with this key")


def _valid_key(key: str) -> str:
    if not _is_key(key):
        raise Problem(400, "The key is not valid", "a key has 1 to 64 letters, digits, hyphens and underscores")
    return key


async def _body(request: BaseRequest) -> bytes:
    """Return the whole body. Raises Problem if it is too large or too slow."""
    try:
        if request.content.is_eof():
            return await request.read()
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except HTTPRequestEntityTooLarge:
        raise Problem(413, "The body is too large", f"at most {BODY_MAX_BYTES} bytes are read") from None
    except TimeoutError:
        raise Problem(408, "The body did not arrive in time") from None


async def _hang(request: BaseRequest) -> None:
    """Return when the client has left, or after HANG_SECONDS."""
    deadline = asyncio.get_running_loop().time() + HANG_SECONDS
    while request.transport is not None and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - aiohttp has no event for it
        await asyncio.sleep(HANG_CHECK_SECONDS)


def _dropped(request: BaseRequest) -> Response:
    """End the connection. aiohttp ignores a response to a connection that has ended."""
    if request.transport is not None:
        request.transport.abort()
    return Response()
