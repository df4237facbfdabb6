"""A client of the gateway's public API for the play desk."""

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

CALL_SECONDS = 15.0
ANSWER_MAX_BYTES = 64 * 1024


class Gateway:
    """Places and cancels orders over a limited number of connections. Used as a context manager."""

    def __init__(self, base_url: str, connections: int) -> None:
        self._base_url = base_url.rstrip("/")
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Gateway":
        import aiohttp  # noqa: PLC0415 - slow to load, and needed only while orders are placed

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def place(self, body: dict[str, Any], idempotency_key: str) -> tuple[str | None, str]:
        """Place an order. Return its id, or None and why it was not accepted, such as `503` or `no answer`."""
        status, content = await self._post("/orders", body, {"Idempotency-Key": idempotency_key})
        if status not in (200, 201):
            return None, f"not accepted: {status or 'no answer'}"
        try:
            order_id = json.loads(content)["orderId"]
        except (ValueError, KeyError, TypeError):
            return None, "not accepted: wrong answer"
        return str(order_id), ""

    async def cancel(self, order_id: str) -> int | None:
        """Cancel an order. Return the status of the answer, or None without one."""
        return (await self._post(f"/orders/{order_id}/cancel", None, {}))[0]

    async def _post(self, path: str, body: Any, headers: dict[str, str]) -> tuple[int | None, bytes]:
        import aiohttp  # noqa: PLC0415 - as above

        assert self._session is not None
        with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
            async with self._session.post(
                self._base_url + path, json=body, headers=headers, allow_redirects=False
            ) as answer:
                return answer.status, await answer.content.read(ANSWER_MAX_BYTES)
        return None, b""
