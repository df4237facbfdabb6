"""The HTTP client of a payment provider against correct and wrong answers on real connections (P2)."""

import asyncio
import gzip
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeVar

import pytest
import trustme
import uvloop

from orderstream.domain.payment import Authorized, Charge, Declined, NothingToVoid, Pending, Voided
from orderstream.payment_worker.providers.http import (
    BODY_MAX_BYTES,
    HEADER_FIELD_MAX_BYTES,
    HEADER_FIELDS_MAX,
    REASON_MAX_CHARACTERS,
    RETRY_AFTER_MAX_SECONDS,
    HttpPaymentProvider,
)
from orderstream.payment_worker.providers.protocol import CallContext, ProviderRefusedError, ProviderUnavailableError
from orderstream.provider_settings import tls_context
from orderstream.telemetry.tracing import TraceContext
from tests.support.contracts import provider_violations
from tests.support.raw_provider import RawProvider, answer

KEY = "019b8f2e-6c3a-7000-8000-000000000001"
CHARGE = Charge(KEY, Decimal("12.50"), "EUR", datetime(2026, 1, 2, tzinfo=UTC))
PLENTY = CallContext(20.0)
"""More time than any call of these tests needs."""
BRIEF = CallContext(1.0)
"""The time of a call that gets no answer. Half of it is enough for a connection, also on a busy machine."""
API_KEY = "s3cret-key"

T = TypeVar("T")
Call = Callable[[HttpPaymentProvider], Awaitable[T]]


def payment(status: str = "authorized", **changed: object) -> str:
    """Return the body of an answer to CHARGE."""
    return json.dumps({"key": KEY, "status": status, "amount": "12.50", "currency": "EUR"} | changed)


OK = answer(payment())


def authorize(provider: HttpPaymentProvider, call: CallContext = PLENTY) -> Awaitable[Authorized | Declined | Pending]:
    """Authorize CHARGE."""
    return provider.authorize(CHARGE, call)


def calls(server: RawProvider, call: Call[T], *, api_key: str | None = None) -> T:
    """Serve, make a provider and call it. Return the outcome of the call."""

    async def main() -> T:
        async with server.serve() as url:
            provider = HttpPaymentProvider(url, 10, api_key)
            try:
                return await call(provider)
            finally:
                await provider.close()

    return uvloop.run(main())


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (payment("authorized"), Authorized()),
        (payment("declined"), Declined()),
        (payment("pending"), Pending()),
        (payment("voided"), Declined()),
        (payment("voided", amount=None, currency=None), Declined()),
        (json.dumps({"key": KEY, "status": "voided"}), Declined()),
        (payment(amount="12.5"), Authorized()),
        (payment(amount="012.5000"), Authorized()),
        (payment(processor={"id": [1, None]}), Authorized()),
        ("\n " + payment() + "\n", Authorized()),
    ],
)
def test_every_documented_answer_has_its_outcome(body: str, outcome: object) -> None:
    assert calls(RawProvider(answer(body)), authorize) == outcome


@pytest.mark.parametrize(("status", "outcome"), [("voided", Voided()), ("nothing_to_void", NothingToVoid())])
def test_a_void_has_its_outcome(status: str, outcome: object) -> None:
    server = RawProvider(answer(json.dumps({"key": KEY, "status": status})))
    assert calls(server, lambda provider: provider.void(KEY, PLENTY)) == outcome
    assert server.requests[0].startswith(f"POST /v1/payments/{KEY}/void HTTP/1.1\r\n".encode())
    assert server.requests[0].lower().count(b"content-length: 0\r\n") == 1


def test_the_request_has_the_key_the_exact_amount_the_api_key_and_the_trace() -> None:
    server = RawProvider(answer(payment(amount="1E+3")), OK)
    trace = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=value")
    charge = Charge(KEY, Decimal("1E+3"), "EUR", CHARGE.accepted_at)
    with pytest.raises(ProviderUnavailableError):
        calls(server, lambda provider: provider.authorize(charge, CallContext(20, trace)), api_key=API_KEY)
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    assert line == "POST /v1/payments HTTP/1.1"
    assert dict(field.lower().split(": ", 1) for field in fields) == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": f"bearer {API_KEY}",
        "content-length": str(len(body)),
        "content-type": "application/json",
        "idempotency-key": KEY,
        "traceparent": trace.traceparent,
        "tracestate": trace.tracestate,
        "user-agent": "orderstream",
    }
    assert json.loads(body) == {"amount": "1000", "currency": "EUR"}
    assert provider_violations("PaymentRequest", json.loads(body)) == []


def test_a_trace_that_cannot_be_a_header_field_is_left_out() -> None:
    server = RawProvider(OK)
    trace = TraceContext("00-1\r\nauthorization: other", "a=b")
    assert calls(server, lambda provider: authorize(provider, CallContext(20, trace))) == Authorized()
    assert b"authorization" not in server.requests[0]
    assert b"tracestate" not in server.requests[0]


def test_a_key_cannot_leave_its_part_of_the_path() -> None:
    server = RawProvider(answer(json.dumps({"key": "../a?b", "status": "voided"})))
    assert calls(server, lambda provider: provider.void("../a?b", PLENTY)) == Voided()
    assert server.requests[0].startswith(b"POST /v1/payments/..%2Fa%3Fb/void HTTP/1.1\r\n")


def test_calls_share_a_connection_and_keep_no_cookie() -> None:
    server = RawProvider(answer(payment(), "200 OK", "Set-Cookie: session=1"), OK)

    async def twice(provider: HttpPaymentProvider) -> list[object]:
        return [await authorize(provider), await authorize(provider)]

    assert calls(server, twice) == [Authorized(), Authorized()]
    assert server.connections == 1
    assert b"cookie" not in server.requests[1].lower()


BOMB = gzip.compress(b'{"key": "' + b"0" * 50_000_000)
REDIRECT = answer("", "307 Temporary Redirect", "Location: /v1/payments")

# The answer of the provider, and a part of the reason that is logged.
UNKNOWN: dict[str, tuple[bytes, str]] = {
    "no JSON": (answer("<html>"), "the answer is not valid: JSON is malformed"),
    "an empty body": (answer(""), "the answer is not valid: Input data was truncated"),
    "a part of the JSON": (answer(payment()[:-1]), "the answer is not valid"),
    "bytes after the JSON": (answer(payment() + "x"), "the answer is not valid"),
    "no UTF-8": (answer(payment().encode().replace(b"EUR", b"\xff\xff\xff")), "the answer is not valid"),
    "deep nesting": (answer("[" * 60_000), "the answer is not valid"),
    "deep nesting in a further member": (answer(payment()[:-1] + ',"x":' + "[" * 60_000), "the answer is not valid"),
    "an array": (answer(f"[{payment()}]"), "Expected `object`, got `array`"),
    "a status that is no text": (answer(payment(status=1)), "Expected `str`, got `int` - at `$.status`"),  # type: ignore[arg-type]
    "an amount that is a number": (answer(payment(amount=12.5)), "Expected `str | null`, got `float` - at `$.amount`"),
    "no status": (answer(json.dumps({"key": KEY})), "missing required field `status`"),
    "an unknown status": (answer(payment("captured")), "Invalid enum value 'captured' - at `$.status`"),
    "the status of a void": (answer(payment("nothing_to_void")), "Invalid enum value"),
    "two members of one name": (answer(payment()[:-1] + ', "status": "declined"}'), "two members of one name"),
    "an escaped member": (answer(payment()[:-1] + ', "st\\u0061tus": "declined"}'), "two members of one name"),
    "another key": (answer(payment(key=KEY[:-1] + "2")), "the answer is for another key"),
    "another amount": (answer(payment(amount="12.51")), "another amount or currency"),
    "no amount": (answer(payment(amount=None)), "another amount or currency"),
    "an amount that is no number": (answer(payment(amount="NaN")), "another amount or currency"),
    "an amount with an exponent": (answer(payment(amount="1250e-2")), "another amount or currency"),
    "another currency": (answer(payment(currency="USD")), "another amount or currency"),
    "another amount of a decline": (answer(payment("declined", amount="1")), "another amount or currency"),
    "a large body": (answer(b" " * 2**21), "status 200 with a body larger than 65536 bytes"),
    "a large body without a length": (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 2**21, "larger than 65536 bytes"),
    "a compressed body": (answer(gzip.compress(payment().encode()), "200 OK", "Content-Encoding: gzip"), "compressed"),
    "a gzip bomb": (answer(BOMB, "200 OK", "Content-Encoding: gzip"), "status 200 with a compressed body"),
    "a gzip bomb of an error": (answer(BOMB, "500 Oops", "Content-Encoding: gzip"), "status 500 with a compressed"),
    "a redirect": (REDIRECT, "status 307"),
    "a redirect to another host": (answer("", "302 Found", "Location: http://192.0.2.1/"), "status 302"),
    "201": (answer(payment(), "201 Created"), "status 201"),
    "HTTP/1.0": (answer(payment(), version="1.0"), "not of HTTP/1.1"),
    "HTTP/1.0 without a length": (b"HTTP/1.0 200 OK\r\n\r\n" + payment().encode(), "not of HTTP/1.1"),
    "a refusal of HTTP/1.0": (answer("", "503 Busy", version="1.0"), "not of HTTP/1.1"),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", "status 204"),
    "400": (answer('{"title": "Invalid", "detail": "no such currency"}', "400 Bad"), "status 400: no such currency"),
    "404": (answer("", "404 Not Found"), "status 404"),
    "409": (answer('{"title": "Key reused"}', "409 Conflict"), "status 409: Key reused"),
    "500": (answer("", "500 Internal Server Error"), "status 500"),
    "500 with a long text": (answer(f'{{"detail": "{"x" * 9_000}"}}', "500 Oops"), "status 500: xxx"),
    "502": (answer("<html>", "502 Bad Gateway"), "status 502"),
    "504": (answer("", "504 Gateway Timeout"), "status 504"),
    "no HTTP": (b"220 mail.example ESMTP\r\n\r\n", "no usable answer"),
    "a truncated body": (answer(payment())[:-9].replace(b"OK", b"OK\r\nConnection: close"), "no usable answer"),
    "a dropped connection": (b"\r\n", "no usable answer: ServerDisconnectedError"),
    "a long header field": (answer(payment(), "200 OK", "X: x" + "x" * HEADER_FIELD_MAX_BYTES), "no usable answer"),
    "many header fields": (answer(payment(), "200 OK", *["X: x"] * HEADER_FIELDS_MAX), "no usable answer"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_another_answer_is_an_unknown_outcome_with_a_clear_reason(case: str) -> None:
    sent, reason = UNKNOWN[case]
    server = RawProvider(sent)
    with pytest.raises(ProviderUnavailableError) as caught:
        calls(server, authorize, api_key=API_KEY)
    assert reason in str(caught.value)
    assert len(str(caught.value)) <= REASON_MAX_CHARACTERS
    assert API_KEY not in repr(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("case", ["no JSON", "a gzip bomb", "a redirect", "404", "500", "a truncated body"])
def test_a_void_treats_wrong_answers_in_the_same_way(case: str) -> None:
    sent, reason = UNKNOWN[case]
    with pytest.raises(ProviderUnavailableError, match=reason):
        calls(RawProvider(sent), lambda provider: provider.void(KEY, PLENTY))


@pytest.mark.parametrize(
    "body", [{"key": "other", "status": "voided"}, {"key": KEY, "status": "authorized"}, {"key": KEY}, {}]
)
def test_a_void_needs_an_answer_for_its_key(body: dict[str, str]) -> None:
    with pytest.raises(ProviderUnavailableError):
        calls(RawProvider(answer(json.dumps(body))), lambda provider: provider.void(KEY, PLENTY))


def test_the_next_call_works_after_a_wrong_answer() -> None:
    server = RawProvider(UNKNOWN["a large body"][0], OK)

    async def twice(provider: HttpPaymentProvider) -> object:
        with pytest.raises(ProviderUnavailableError):
            await authorize(provider)
        return await authorize(provider)

    assert calls(server, twice) == Authorized()
    assert server.connections == 2


NOW, LATER = "Date: Fri, 02 Jan 2026 03:04:05 GMT", "Retry-After: Fri, 02 Jan 2026 03:04:35 GMT"


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ((), 0),
        (("Retry-After: 7",), 7),
        (("Retry-After: 0",), 0),
        (("Retry-After: 99999999",), RETRY_AFTER_MAX_SECONDS),
        ((NOW, LATER), 30),
        ((LATER,), 0),
        ((LATER.replace("Retry-After", "Date"), NOW.replace("Date", "Retry-After")), 0),
        ((NOW, LATER.replace("2026", "2036")), RETRY_AFTER_MAX_SECONDS),
        *(((NOW, f"Retry-After: {wrong}"), 0) for wrong in ("-1", "1.5", "soon", "1e3", "٣", "99999999999", "")),
    ],
)
def test_429_and_503_are_refused_calls_with_the_time_of_the_next(
    status: str, fields: tuple[str, ...], seconds: float
) -> None:
    with pytest.raises(ProviderRefusedError, match=f"^status {status[:3]}$") as caught:
        calls(RawProvider(answer("{}", status, *fields)), authorize)
    assert caught.value.retry_after_seconds == seconds


def test_a_wrong_api_key_is_a_refused_call() -> None:
    """It concerns every order. If it counted as an attempt, all orders would fail until an operator corrects it."""
    with pytest.raises(ProviderRefusedError, match=r"^status 401: Wrong API key$"):
        calls(RawProvider(answer('{"title": "Wrong API key"}', "401 Unauthorized")), authorize)


def refused_to_connect(url: str, tls: ssl.SSLContext | None = None, call: CallContext = PLENTY) -> str:
    """Call a provider to which no connection can be made. Return the reason."""

    async def main() -> None:
        provider = HttpPaymentProvider(url, 10, API_KEY, tls)
        try:
            await authorize(provider, call)
        finally:
            await provider.close()

    with pytest.raises(ProviderRefusedError) as caught:
        uvloop.run(main())
    assert API_KEY not in str(caught.value)
    return str(caught.value)


def test_without_a_connection_the_call_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert refused_to_connect(f"http://127.0.0.1:{port}").startswith("no connection: ")
    assert refused_to_connect("http://name.invalid").startswith("no connection: ")
    assert refused_to_connect("http://127.1").startswith("no connection: ")


def test_a_hung_tls_handshake_ends_in_time_and_sends_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        assert refused_to_connect(url, tls_context(), CallContext(0.4)) == "no connection within 0.2 s"


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert calls(RawProvider(OK), authorize) == Authorized()


@pytest.mark.parametrize("sent", [b"", answer(payment())[:-9]], ids=["no answer", "an answer that stops"])
def test_a_call_without_an_answer_ends_in_time(sent: bytes) -> None:
    server = RawProvider(sent)
    with pytest.raises(ProviderUnavailableError, match=r"^no answer within 1 s$"):
        calls(server, lambda provider: authorize(provider, BRIEF))
    assert len(server.requests) == 1


def test_a_call_that_waits_too_long_for_a_connection_of_the_pool_is_refused() -> None:
    async def main() -> tuple[object, object]:
        async with RawProvider(b"").serve() as url:
            provider = HttpPaymentProvider(url, 1)
            first, second = authorize(provider, CallContext(3)), authorize(provider, BRIEF)
            outcomes = await asyncio.gather(first, second, return_exceptions=True)
            await provider.close()
            return outcomes

    first, second = uvloop.run(main())
    assert isinstance(first, ProviderUnavailableError)
    assert isinstance(second, ProviderRefusedError)
    assert str(second) == "no connection within 0.5 s"


def test_the_client_does_not_repeat_a_request_on_a_connection_that_was_closed() -> None:
    """The worker repeats it, with the next attempt. So an attempt is one request, and its time is the call's."""
    server = RawProvider(OK, b"\r\n", OK)

    async def twice(provider: HttpPaymentProvider) -> object:
        await authorize(provider)
        return await authorize(provider)

    with pytest.raises(ProviderUnavailableError, match="ServerDisconnectedError"):
        calls(server, twice)
    assert len(server.requests) == 2


def test_a_cancelled_call_ends_at_once_and_leaves_no_connection() -> None:
    server = RawProvider(b"", OK)

    async def cancel(provider: HttpPaymentProvider) -> object:
        call = asyncio.ensure_future(authorize(provider))
        await asyncio.wait_for(server.received.wait(), 20)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return await authorize(provider)

    assert calls(server, cancel) == Authorized()
    assert server.connections == 2


def over_tls(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> object:
    """Call a provider over TLS and return the outcome or the error. If the client refuses, no request may arrive."""
    server = RawProvider(OK)

    async def main() -> object:
        async with server.serve(server_context) as url:
            provider = HttpPaymentProvider(url, 10, API_KEY, client_context)
            try:
                return await authorize(provider)
            finally:
                await provider.close()

    try:
        return uvloop.run(main())
    except (ProviderRefusedError, ProviderUnavailableError) as error:
        assert server.requests == []
        return error


class Authority:
    """A CA, with files for the settings."""

    def __init__(self, folder: str) -> None:
        self.trust = trustme.CA()
        self.file = f"{folder}/ca.pem"
        self.trust.cert_pem.write_to_path(self.file)
        own = self.trust.issue_cert("client.example")
        self.cert_file, self.key_file = f"{folder}/cert.pem", f"{folder}/key.pem"
        own.cert_chain_pems[0].write_to_path(self.cert_file)
        own.private_key_pem.write_to_path(self.key_file)

    def server(self, name: str) -> ssl.SSLContext:
        """Return the context of a server whose certificate is for `name`."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.trust.issue_cert(name).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(str(tmp_path_factory.mktemp("authority")))


def test_a_certificate_of_the_named_ca_is_trusted(authority: Authority) -> None:
    assert over_tls(authority.server("127.0.0.1"), tls_context(authority.file)) == Authorized()


@pytest.mark.parametrize("ca", ["none", "named"])
def test_a_certificate_that_does_not_match_is_a_refused_call_and_nothing_is_sent(authority: Authority, ca: str) -> None:
    context = tls_context() if ca == "none" else tls_context(authority.file)
    error = over_tls(authority.server("127.0.0.1" if ca == "none" else "other.example"), context)
    assert isinstance(error, ProviderRefusedError)
    assert str(error).startswith("no connection: ")
    assert "certificate verify failed" in str(error).lower()


def test_a_client_certificate_is_shown(authority: Authority) -> None:
    context = authority.server("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.trust.configure_trust(context)
    own = tls_context(authority.file, authority.cert_file, authority.key_file)
    assert over_tls(context, own) == Authorized()
    assert isinstance(over_tls(context, tls_context(authority.file)), ProviderUnavailableError)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert isinstance(over_tls(context, tls_context(authority.file)), ProviderRefusedError)


def test_a_server_that_speaks_no_tls_is_a_refused_call() -> None:
    async def main() -> None:
        async with RawProvider(OK).serve() as url:
            provider = HttpPaymentProvider(url.replace("http:", "https:"), 10, None, tls_context())
            try:
                await authorize(provider, CallContext(2))
            finally:
                await provider.close()

    with pytest.raises(ProviderRefusedError, match=r"^no connection"):
        uvloop.run(main())


def test_a_provider_that_was_never_called_can_be_closed() -> None:
    uvloop.run(HttpPaymentProvider("http://127.0.0.1:9", 10).close())


def test_a_body_of_the_largest_size_is_read() -> None:
    body = payment().encode()
    assert calls(RawProvider(answer(body.ljust(BODY_MAX_BYTES))), authorize) == Authorized()
    with pytest.raises(ProviderUnavailableError, match="larger"):
        calls(RawProvider(answer(body.ljust(BODY_MAX_BYTES + 1))), authorize)
