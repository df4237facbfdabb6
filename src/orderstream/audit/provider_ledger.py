"""Reads the payments of a provider's ledger over HTTP: page by page in the order of their keys, or one by its key.

The answers are those of contracts/payment-provider.openapi.yaml. A ledger may answer anything. Each answer has a limit
of time and of size, and an answer that cannot be understood is a LedgerError, never a payment.
"""

import asyncio
import ssl
import time
from collections.abc import Iterator, Mapping
from decimal import Decimal
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Struct

from orderstream import provider_settings
from orderstream.payment_worker.providers.choose import credentials
from orderstream.settings import Settings

PAGE_PAYMENTS = 1_000
"""Payments in one answer."""
ANSWER_SECONDS = 10.0
ANSWER_MAX_BYTES = 4 * 2**20
ATTEMPTS_MAX = 3
RETRY_SECONDS = 1.0
_READ_BYTES = 65_536
_LATER = frozenset({429, 500, 502, 503, 504})
"""Statuses after which another attempt may succeed."""

T = TypeVar("T")


class LedgerError(Exception):
    """The ledger could not be read. The message is one line and names its address."""


class _LaterError(LedgerError):
    """Another attempt may succeed."""


class LedgerPayment(Struct, frozen=True):
    """A payment in the ledger. `charges` is the number of charges ever made, and `held` the amount that is held now.

    Amount and currency are None if the key was voided before it was used.
    """

    key: str
    amount: Decimal | None
    currency: str | None
    charges: int
    held: Decimal

    def __post_init__(self) -> None:
        """Refuse infinities and NaN, which the decoder accepts and no amount can be compared with."""
        if not (self.held.is_finite() and (self.amount is None or self.amount.is_finite())):
            raise ValueError("an amount is not a number")


class _Page(Struct, frozen=True):
    payments: list[LedgerPayment]
    next: str | None


class Ledger:
    """A client of one ledger, for one thread. Use it as a context manager."""

    def __init__(self, url: str, api_key: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        """`url` is the address before /v1/payments. Raises LedgerError if it is no address."""
        try:
            self.name = provider_settings.url(url)
        except ValueError as error:
            raise LedgerError(f"the address of the ledger is not valid: {error}") from None
        self._url = url.rstrip("/")
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._tls = tls or True
        self._runner = asyncio.Runner()
        self._session: aiohttp.ClientSession | None = None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._session is not None:
            self._runner.run(self._session.close())
        self._runner.close()

    def payments(self) -> Iterator[LedgerPayment]:
        """Yield all payments in ascending order of their keys. Holds one page in memory. Raises LedgerError."""
        after: str | None = None
        last = ""
        while True:
            page = self._get("/v1/payments", {"after": after, "limit": str(PAGE_PAYMENTS)}, _Page)
            if page is None:
                raise LedgerError(f"{self.name} is not a payment ledger: GET /v1/payments answered 404")
            for payment in page.payments:
                if payment.key <= last:
                    raise LedgerError(
                        f"{self.name} lists the key {payment.key!r} after {last!r}, which is not in order"
                    )
                last = payment.key
                yield payment
            if not page.next:
                return
            if not page.payments:
                raise LedgerError(f"{self.name} answered an empty page that is not the last one")
            after = page.next

    def payment(self, key: str) -> LedgerPayment | None:
        """Return the payment with this key, or None if the ledger has none. Raises LedgerError."""
        found = self._get(f"/v1/payments/{quote(key, safe='')}", {}, LedgerPayment)
        if found is not None and found.key != key:
            raise LedgerError(f"{self.name} answered with the payment {found.key!r} to a request for {key!r}")
        return found

    def _get(self, path: str, query: Mapping[str, str | None], kind: type[T]) -> T | None:
        """GET a document. Return None for 404. Raises LedgerError, at once or after ATTEMPTS_MAX attempts."""
        given = {name: value for name, value in query.items() if value is not None}
        for attempts_left in reversed(range(ATTEMPTS_MAX)):
            try:
                status, body = self._runner.run(self._request(path, given))
                return self._document(path, status, body, kind)
            except _LaterError:
                if not attempts_left:
                    raise
                time.sleep(RETRY_SECONDS)
        raise AssertionError("unreachable")

    async def _request(self, path: str, query: Mapping[str, str]) -> tuple[int, bytes]:
        """Return the status and the body of an answer. Raises LedgerError."""
        if self._session is None:
            # Without decompression, no small answer can become a large one. ANSWER_SECONDS is for the whole answer.
            timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
            self._session = aiohttp.ClientSession(timeout=timeout, headers=self._headers, auto_decompress=False)
        try:
            async with self._session.get(
                self._url + path, params=query, ssl=self._tls, allow_redirects=False
            ) as answer:
                body = bytearray()
                async for part in answer.content.iter_chunked(_READ_BYTES):
                    body += part
                    if len(body) > ANSWER_MAX_BYTES:
                        raise LedgerError(f"{self.name} answered GET {path} with more than {ANSWER_MAX_BYTES} bytes")
                return answer.status, bytes(body)
        except TimeoutError:
            raise _LaterError(f"{self.name} gave no whole answer to GET {path} within {ANSWER_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise _LaterError(f"{self.name} cannot be read: {why[:300]}") from error

    def _document(self, path: str, status: int, body: bytes, kind: type[T]) -> T | None:
        if status == 404:
            return None
        if status in (401, 403):
            raise LedgerError(
                f"{self.name} refuses the API key with {status}: set PAYMENT_API_KEY or PAYMENT_API_KEY_FILE"
            )
        if status != 200:
            kind_of_error = _LaterError if status in _LATER else LedgerError
            raise kind_of_error(f"{self.name} answered GET {path} with {status}")
        try:
            document = msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, ValueError) as error:
            raise LedgerError(
                f"{self.name} is not a payment ledger: its answer to GET {path} is wrong: {error}"
            ) from None
        return document


def ledger_at(url: str, settings: Settings) -> Ledger:
    """Return the ledger at `url`, with the API key and the certificates of the settings. Raises LedgerError."""
    return Ledger(url, *credentials(settings, url))
