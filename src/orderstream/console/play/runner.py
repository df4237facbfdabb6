"""Places orders at a rate through the public API of the gateway, and reads back what came of them.

Everything is limited: the rate, the time, the calls in flight, and the orders that are followed. A run is an exclusive
action: one runs at a time in all consoles, and any console stops it. It goes on while Postgres or the gateway is down,
because that is what one wants to watch.
"""

import asyncio
import contextlib
import random
import time
import uuid
from typing import Any

import psycopg
from msgspec import Struct
from msgspec.structs import asdict

from orderstream.console.actions.log import Action, LeaseLostError, begin_exclusive, finish, renew
from orderstream.console.context import Console
from orderstream.console.play.figures import Figures, FiguresView
from orderstream.console.play.gateway import Gateway
from orderstream.console.play.orders import DECLINED_AMOUNT, KindName, draw_kind, order_of
from orderstream.console.play.simulator import SimulatorError, change_faults
from orderstream.console.play.stock import SQL, fill_up
from orderstream.http_server.problems import Problem
from orderstream.telemetry import logs

KIND = "play.run"
RATE_MIN, RATE_MAX = 0.1, 50.0
SECONDS_MAX = 1_800.0
IN_FLIGHT_MAX = 100
"""Calls of the gateway at the same time. While there are more, orders are skipped and counted."""
LOOK_UP_MAX = 1_000
"""Orders whose state one statement reads. There is one such statement a second."""
EVERY_SECONDS = 1.0
AFTERWARDS_SECONDS = 60.0
"""How long the figures still follow open orders after the last order was placed."""
LAST_CALLS_SECONDS = 2.0
"""How long a run waits for its calls in flight at its end."""
_BEHIND_SECONDS = 1.0
_CANCEL_AFTER_SECONDS = (0.05, 1.5)

log = logs.get()


class Plan(Struct, frozen=True):
    """What to place: orders a second, for how many seconds, and the shares of the kinds."""

    rate: float
    seconds: float
    mix: dict[KindName, int]


class RunView(Struct, frozen=True, rename="camel"):
    """A run of the play desk in this console."""

    action_id: int
    is_running: bool
    rate: float
    seconds: float
    seconds_left: float
    mix: dict[KindName, int]
    figures: FiguresView


class Run:
    """One run. `work` is its whole life."""

    def __init__(self, console: Console, action_id: int, plan: Plan, source: random.Random) -> None:
        self.action_id = action_id
        self.plan = plan
        self._console = console
        self._source = source
        self._figures = Figures()
        self._calls: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()
        self._ended = False
        self.stopped_by: str | None = None

    def view(self) -> RunView:
        """Return the run as it is now."""
        left = 0.0 if self._ended else max(0.0, self._began + self.plan.seconds - time.monotonic())
        plan = self.plan
        return RunView(self.action_id, not self._ended, plan.rate, plan.seconds, left, plan.mix, self._figures.view())

    async def work(self) -> None:
        """Place the orders, follow them, and record the result."""
        state = "done"
        try:
            async with Gateway(self._console.settings.base_url, IN_FLIGHT_MAX) as gateway:
                try:
                    await self._place_all(gateway)
                    await self._finish_calls()
                finally:
                    self._ended = True
                    for call in self._calls:
                        call.cancel()
            if self.stopped_by is not None:
                state = "cancelled"
            await self._record(state)
            await self._follow_rest()
        except asyncio.CancelledError:
            self.stopped_by = "the console was stopped"
            await self._record("cancelled")
            raise
        except LeaseLostError:
            log.warning("play_stopped", action=self.action_id, reason="another console has ended this run")

    async def _place_all(self, gateway: Gateway) -> None:
        """Place orders until the time is over or the run is stopped. Raises LeaseLostError."""
        next_at = reported_at = time.monotonic()
        end = self._began + self.plan.seconds
        while self.stopped_by is None and (now := time.monotonic()) < end:
            if now - reported_at >= EVERY_SECONDS:
                reported_at = now
                await self._report()
            if next_at < now - _BEHIND_SECONDS:
                missed = int((now - next_at) * self.plan.rate)
                self._figures.skipped += missed
                next_at += missed / self.plan.rate
            if next_at <= now:
                next_at += 1 / self.plan.rate
                self._begin(gateway)
            await asyncio.sleep(max(0.0, min(next_at - time.monotonic(), EVERY_SECONDS / 4)))

    async def _finish_calls(self) -> None:
        """Let the calls in flight end, such as cancels that are still to be sent."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=LAST_CALLS_SECONDS)

    def _begin(self, gateway: Gateway) -> None:
        if len(self._calls) >= IN_FLIGHT_MAX:
            self._figures.skipped += 1
            return
        call = asyncio.create_task(self._place(gateway, draw_kind(self.plan.mix, self._source)))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _place(self, gateway: Gateway, kind: KindName) -> None:
        """Place one order, and do what its kind asks for."""
        body, key = order_of(kind, self._source), f"play-{uuid.uuid4()}"
        order_id, why = await gateway.place(body, key)
        if order_id is None:
            self._figures.refused(kind, why)
            return
        self._figures.placed += 1
        if kind == "repeated":
            again, _ = await gateway.place(body, key)
            self._figures.keys_broken += again not in (None, order_id)
        if kind == "cancelled":
            await asyncio.sleep(self._source.uniform(*_CANCEL_AFTER_SECONDS))
            await gateway.cancel(order_id)
        self._figures.follow(order_id, kind, time.monotonic())

    async def _report(self) -> None:
        """Read what came of the orders, renew the lease, and see whether the run is stopped."""
        await self._look_up()
        figures = self._figures.view()
        progress = {"placed": figures.placed, "open": figures.open, "secondsLeft": round(self.view().seconds_left)}
        try:
            stopped_by = await self._console.work(self._renew, progress)
        except Problem:
            return  # Postgres is down. The run goes on until its lease ends.
        if stopped_by is not None:
            self.stopped_by = stopped_by

    def _renew(self, progress: dict[str, Any]) -> str | None:
        with self._console.stores.acting() as connection:
            return renew(connection, self.action_id, progress)

    async def _look_up(self) -> None:
        order_ids = self._figures.to_look_up(LOOK_UP_MAX, time.monotonic())
        if not order_ids:
            return
        try:
            rows = await self._console.work(self._settled, order_ids)
        except Problem:
            return
        for order_id, status, reason, seconds in rows:
            self._figures.settled(order_id, f"{status} {reason}".strip(), seconds)

    def _settled(self, order_ids: list[str]) -> list[tuple[str, str, str, float]]:
        with self._console.stores.reading() as connection:
            return connection.execute(SQL["play_settled"], {"ids": order_ids}).fetchall()

    async def _record(self, state: str) -> None:
        """Store the result of the run. If Postgres is down, the action is shown as interrupted."""
        figures = asdict(self._figures.view())
        result = {name: figures[name] for name in ("placed", "open", "skipped")}
        if self.stopped_by is not None:
            result["stoppedBy"] = self.stopped_by

        def store() -> None:
            with self._console.stores.acting() as connection:
                finish(connection, self.action_id, state, result)

        try:
            await self._console.work(store)
        except (Problem, psycopg.Error) as error:
            log.warning("play_not_recorded", action=self.action_id, error=str(error)[:500])

    async def _follow_rest(self) -> None:
        """Follow the orders that are still open for a while, so that the page shows how they end."""
        end = time.monotonic() + AFTERWARDS_SECONDS
        while self._figures.view().open and time.monotonic() < end:
            await asyncio.sleep(EVERY_SECONDS)
            await self._look_up()


def prepare(console: Console, plan: Plan, actor: str, reason: str) -> int:
    """Stock the SKUs of the play desk, and store that a run begins. Return the id of its action.

    Raises AlreadyRunningError, StockError and psycopg.Error.
    """
    parameters = {"rate": plan.rate, "seconds": plan.seconds, "mix": plan.mix}
    url = None if console.local is None else console.local.url("PAYMENT_SIMULATOR_URL")
    with console.stores.acting() as connection:
        action_id = begin_exclusive(connection, Action(KIND, "play desk", actor, reason, parameters))
        if url is not None:
            with contextlib.suppress(SimulatorError):
                change_faults(url, {"declinedAmounts": [DECLINED_AMOUNT]})
        try:
            fill_up(connection, actor, "stock for the play desk")
        except Exception:
            finish(connection, action_id, "failed", {"error": "the play desk could not stock its SKUs"})
            raise
    return action_id
