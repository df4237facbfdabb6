"""The play desk of one console: its run, and the trickle of orders that `make demo` asks for."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from orderstream.console.actions.log import AlreadyRunningError, cancel
from orderstream.console.context import Console
from orderstream.console.play.orders import DEFAULT_MIX
from orderstream.console.play.runner import KIND, Plan, Run, RunView, prepare
from orderstream.http_server.problems import Problem
from orderstream.inventory_worker.stock_commands import StockError
from orderstream.telemetry import logs

DEMO_SECONDS = 8 * 3_600.0
"""How long the trickle of `make demo` lasts."""
DEMO_ACTOR = "make demo (console)"
ATTEMPTS_MAX = 60
ATTEMPT_SECONDS = 2.0
_LAST_WORK_SECONDS = 3.0

log = logs.get()


class Desk:
    """Starts and stops runs. Used from the event loop only."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._run: Run | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def view(self) -> RunView | None:
        """Return the run of this console, or the last one, or None."""
        return None if self._run is None else self._run.view()

    async def start(self, plan: Plan, actor: str, reason: str) -> int:
        """Start a run and return the id of its action. Raises Problem and StockError."""
        try:
            action_id = await self._console.work(prepare, self._console, plan, actor, reason)
        except AlreadyRunningError:
            detail = "The play desk places orders already, in this console or in another one. Stop it first."
            raise Problem(409, "play-running", "The play desk runs already", detail) from None
        self._run = Run(self._console, action_id, plan, random.Random())  # noqa: S311 - the orders of a game
        self.spawn(self._run)
        return action_id

    def spawn(self, run: Run) -> None:
        """Let a run work."""
        task = asyncio.create_task(run.work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, actor: str) -> int:
        """Stop the run, in whichever console it is, and return the id of its action. Raises Problem."""
        run = self._run
        is_here = run is not None and run.view().is_running
        if run is not None and is_here:
            run.stopped_by = actor
            return run.action_id

        def ask() -> int | None:
            with self._console.stores.acting() as connection:
                return cancel(connection, KIND, actor)

        action_id = await self._console.work(ask)
        if action_id is None:
            raise Problem(409, "no-play", "The play desk does not run", "The play desk places no orders now.")
        return action_id

    async def trickle(self, rate: float) -> None:
        """Place the demo's orders. Postgres may not be ready, and the run of a killed console may still count."""
        plan = Plan(rate, DEMO_SECONDS, dict(DEFAULT_MIX))
        for _ in range(ATTEMPTS_MAX):
            try:
                await self.start(plan, DEMO_ACTOR, "PLAY_RATE")
            except (Problem, StockError, psycopg.Error) as error:
                log.info("demo_waits", reason=str(error)[:300])
                await asyncio.sleep(ATTEMPT_SECONDS)
            else:
                return
        log.error("demo_not_started", attempts=ATTEMPTS_MAX)

    async def end(self) -> None:
        """End all work, and record that the run was stopped."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WORK_SECONDS)


@asynccontextmanager
async def running(console: Console) -> AsyncIterator[None]:
    """Place the orders of PLAY_RATE while this console belongs to a local stack. End all runs at the end."""
    desk = console.part(Desk)
    demo = None
    if console.local is not None and console.settings.play_rate:
        demo = asyncio.create_task(desk.trickle(console.settings.play_rate))
    try:
        yield
    finally:
        if demo is not None:
            demo.cancel()
        await desk.end()
