"""Runs calls to the payment provider on one event loop, in a thread of its own.

The loop knows no lanes and no breaker. At the end of each turn it reports all calls that ended in it, so that many
calls cost little.
"""

import asyncio
import threading
from collections.abc import Callable, Collection, Iterable, Sequence

import uvloop

from orderstream.domain.payment import (
    Authorized,
    Declined,
    NothingToVoid,
    Outcome,
    Pending,
    Refused,
    Unanswered,
    Voided,
    VoidOutcome,
)
from orderstream.payment_worker.breaker import retry_after_limited
from orderstream.payment_worker.call import Call, End, Kind, Verdict
from orderstream.payment_worker.call_report import label_of
from orderstream.payment_worker.providers.protocol import CallContext, PaymentProvider, ProviderRefusedError
from orderstream.telemetry import logs
from orderstream.telemetry.tracing import Tracer

log = logs.get()

ERROR_MAX_CHARACTERS = 300
CANCEL_SHARE = 0.2
"""At close, the share of the time that cancelled calls have to end. The provider has the same time to close."""
TIMER_STEP_SECONDS = 0.001
"""The loop's timers count in milliseconds."""

_ANSWERS: dict[Kind, tuple[type, ...]] = {
    "authorize": (Authorized, Declined, Pending),
    "void": (Voided, NothingToVoid),
}
_SPAN_NAMES: dict[Kind, str] = {"authorize": "authorize payment", "void": "void payment"}


class UnusableAnswerError(Exception):
    """The adapter returned a value that is not an outcome of its method."""


class Turn:
    """What happened in one turn of the loop."""

    __slots__ = ("begun_batch", "ends", "stopped")

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.stopped: list[Call] = []
        """Calls that were given up before. Their tasks have ended now."""
        self.begun_batch: int | None = None
        """All calls up to this batch have had their first turn."""


class CallLoop:
    """Makes calls. At its deadline a call gets its outcome, even if the adapter ignores that its task is cancelled.

    `on_turn` is called in the thread of the loop.
    """

    def __init__(
        self, provider: PaymentProvider, tracer: Tracer, clock: Callable[[], float], on_turn: Callable[[Turn], None]
    ) -> None:
        self._provider = provider
        self._tracer = tracer
        self._clock = clock
        self._on_turn = on_turn
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="provider-calls", daemon=True)
        self._running: set[Call] = set()
        self._turn: Turn | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._closing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, calls: Sequence[Call]) -> None:
        """Begin the calls of one batch. Thread-safe. Not allowed after `close`."""
        self._loop.call_soon_threadsafe(self._start_calls, calls)

    def give_up(self, select: Callable[[Collection[Call]], Iterable[Call]]) -> None:
        """End those of the running calls that `select` returns. Thread-safe. Not allowed after `close`."""
        self._loop.call_soon_threadsafe(self._give_up_selected, select)

    def close(self, seconds: float) -> None:
        """Let the running calls end, close the provider and end the thread, within `seconds`. Called once.

        Calls that still run near the end of the time are cancelled.
        """
        self._loop.call_soon_threadsafe(self._begin_closing, seconds)
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _start_calls(self, calls: Sequence[Call]) -> None:
        """Make a task for each call. Each task gets its first turn before `_end_turn` runs."""
        now = self._clock()
        for call in calls:
            call.began_at = now
            call.deadline = now + call.timeout_seconds
            call.task = self._loop.create_task(self._make(call))
        self._running.update(calls)
        self._loop.call_soon(self._end_first_turn, calls[-1].batch)
        self._set_timer(min(call.deadline for call in calls), now)

    async def _make(self, call: Call) -> None:
        """Make a call and note how it ended. Catches every exception of the adapter."""
        request = call.request
        began_at = call.began_at = self._clock()
        span = self._tracer.client(_SPAN_NAMES[call.kind], request.trace)
        context = CallContext(call.timeout_seconds, request.trace if span is None else span.context, span)
        outcome: Outcome | VoidOutcome
        verdict: Verdict = "failure"
        error: str | None = None
        try:
            if request.charge is None:
                outcome = await self._provider.void(request.order_id, context)
            else:
                outcome = await self._provider.authorize(request.charge, context)
            if not isinstance(outcome, _ANSWERS[call.kind]):
                raise UnusableAnswerError(f"the provider's adapter returned {outcome!r}")
            verdict = "success"
        except ProviderRefusedError as refusal:
            outcome, error = Refused(retry_after_limited(refusal.retry_after_seconds)), _text(refusal)
        except BaseException as failure:  # noqa: BLE001 - after any error of an adapter the outcome is unknown
            outcome, error = Unanswered(), _text(failure)
        if span is not None:
            number = request.attempts + 1
            span.set({"order.id": request.order_id, "provider.outcome": label_of(outcome), "attempt": number})
            span.set({"provider.method": call.kind})
            span.end(error)
        if not call.is_given_up:
            call.task = None
            self._running.discard(call)
            self._note().ends.append(End(call, outcome, self._clock() - began_at, verdict, error, is_stopped=True))

    def _give_up(self, call: Call, now: float, verdict: Verdict | None, error: str | None) -> None:
        """Give a call the outcome Unanswered, and cancel its task. The adapter may ignore that."""
        assert call.task is not None
        call.is_given_up = True
        self._running.discard(call)
        self._note().ends.append(End(call, Unanswered(), now - call.began_at, verdict, error, is_stopped=False))
        call.task.add_done_callback(lambda _task: self._note_stopped(call))
        call.task.cancel()

    def _give_up_selected(self, select: Callable[[Collection[Call]], Iterable[Call]]) -> None:
        now = self._clock()
        for call in select(self._running):
            self._give_up(call, now, None, None)

    def _note_stopped(self, call: Call) -> None:
        call.task = None
        self._note().stopped.append(call)

    def _note(self) -> Turn:
        """Return the record of the current turn. `_end_turn` reports it at the end of this turn or in the next one."""
        if self._turn is None:
            self._turn = Turn()
            self._loop.call_soon(self._end_turn)
        return self._turn

    def _end_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._on_turn(turn)

    def _end_first_turn(self, batch: int) -> None:
        self._note().begun_batch = batch
        self._end_turn()

    def _set_timer(self, at: float, now: float) -> None:
        """Check the deadlines at a time, unless they are checked earlier."""
        if self._timer is None or at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_later(max(TIMER_STEP_SECONDS, at - now), self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._timer = None
        now = self._clock()
        for call in [call for call in self._running if call.deadline <= now]:
            self._give_up(call, now, "failure", f"no answer within {call.timeout_seconds:g} s")
        if self._running:
            self._set_timer(min(call.deadline for call in self._running), now)

    def _begin_closing(self, seconds: float) -> None:
        self._closing = self._loop.create_task(self._shut_down(seconds))

    async def _shut_down(self, seconds: float) -> None:
        """Wait for the calls, cancel the rest, close the provider and stop the loop."""
        try:
            part = seconds * CANCEL_SHARE
            await _wait([call.task for call in self._running], seconds - 3 * part)
            now, tasks = self._clock(), [call.task for call in self._running]
            for call in list(self._running):
                self._give_up(call, now, None, None)
            await _wait(tasks, part)
            closing = self._loop.create_task(self._provider.close())
            await _wait([closing], part)
            if not closing.done():
                log.warning("provider_not_closed", error=f"no end within {part:g} s")
            elif not closing.cancelled() and (error := closing.exception()) is not None:
                log.warning("provider_not_closed", error=_text(error))
        finally:
            self._end_turn()
            self._loop.stop()


async def _wait(tasks: Iterable[asyncio.Task[None] | None], seconds: float) -> None:
    """Wait until the tasks have ended, or for `seconds`."""
    if running := [task for task in tasks if task is not None]:
        await asyncio.wait(running, timeout=seconds)


def _text(error: BaseException) -> str:
    return repr(error)[:ERROR_MAX_CHARACTERS]
