"""A small copy of Acme Pay, the invented payment company of docs/payment-provider.md."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from aiohttp import web

from tests.support.provider_contract import Fault

TOKEN = "s3cret-token"
Mood = Literal["friendly", "silent", "throttling", "refusing", "reviewing", "broken", "broken_after"]


class AcmePay:
    """The company's books, and its mood."""

    def __init__(self) -> None:
        self.orders: dict[str, dict[str, Any]] = {}
        self.mood: Mood = "friendly"

    def mood_of(self, mood: Mood) -> Fault:
        """Return a fault that gives the company a mood. At its end, the company decides orders in review."""

        @asynccontextmanager
        async def fault() -> AsyncIterator[None]:
            self.mood = mood
            yield
            self.mood = "friendly"
            for order in self.orders.values():
                if order["state"] == "in_review":
                    order |= {"state": "held", "holds": order["holds"] + 1}

        return fault

    def _hold(self, order: dict[str, Any], body: dict[str, Any]) -> None:
        if order["state"] != "open":
            return
        order |= body
        match self.mood:
            case "refusing":
                order["state"] = "refused"
            case "reviewing":
                order["state"] = "in_review"
            case _:
                order |= {"state": "held", "holds": order["holds"] + 1}

    def _cancel(self, order: dict[str, Any]) -> None:
        order |= {"wasHeld": order["wasHeld"] or order["state"] == "held", "state": "cancelled"}

    async def _handle(self, request: web.Request) -> web.Response:
        if request.headers.get("X-Acme-Token") != TOKEN:
            return web.json_response({"error": {"code": "unauthorized"}})
        if self.mood == "silent":
            await asyncio.Event().wait()
        if self.mood == "throttling":
            return web.json_response({"error": {"code": "throttled", "retryInMs": 1500}})
        if self.mood == "broken":
            return web.Response(text="<html>Bad Gateway</html>", status=502)
        body = await request.json() if request.can_read_body else {}
        reference = request.match_info["reference"]
        new = {"reference": reference, "state": "open", "holds": 0, "wasHeld": False}
        action = request.path.rpartition("/")[2]
        if action == "cancel" and reference not in self.orders:
            return web.json_response({"error": {"code": "no_such_order"}})
        order = self.orders.setdefault(reference, new)
        if action == "hold":
            self._hold(order, body)
        elif action == "cancel":
            self._cancel(order)
        if self.mood == "broken_after":
            return web.json_response({"error": {"code": "internal"}})
        return web.json_response(order)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Yield the URL at which the company listens."""

        app = web.Application()
        app.router.add_put("/orders/{reference}", self._handle)
        app.router.add_post("/orders/{reference}/hold", self._handle)
        app.router.add_post("/orders/{reference}/cancel", self._handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
