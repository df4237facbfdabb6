"""Calls to the payment provider, many at a time (P2).

Other threads begin calls and collect the outcomes. A call uses room until its caller has recorded the outcome, so that
memory is bounded by the concurrency.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby, islice
from typing import cast

from msgspec import Struct

from orderstream.domain.payment import InFlight, Outcome, Refused
from orderstream.payment_worker.breaker import Breaker, State
from orderstream.payment_worker.call import Call, End, Ended, Kind, Request
from orderstream.payment_worker.call_loop import CallLoop, Turn
from orderstream.payment_worker.call_report import CallReport
from orderstream.payment_worker.lanes import LANES, Lane, Lanes
from orderstream.payment_worker.providers.protocol import PaymentProvider
from orderstream.telemetry import logs
from orderstream.telemetry.tracing import Tracer

HELD_SECONDS = 60.0
"""How long a held call waits for its release. After that time its batch has failed, and a worker repeats the batch."""
START_SECONDS = 0.1
"""How long `wait` waits for the first turn of its calls, in addition to its own time."""
PATIENCE_SECONDS = 1.0
PATIENCE_ANSWERS = 4.0
"""A call that others wait for may take this many times as long as an average answer, and PATIENCE_SECONDS at least."""
AVERAGE_WEIGHT = 1 / 16
"""The weight of one answer in the average time of an answer."""
STUCK_SECONDS = 1.0
"""How long calls that ignore their cancellation use half of the room before this module logs `provider_calls_stuck`."""

log = logs.get()


class ProviderState(Struct, frozen=True):
    """The state of the calls. `open_seconds` is the time since the breaker opened, or None if it is closed."""

    breaker: State
    open_seconds: float | None
    in_flight: dict[Lane, int]


class _Waiter:
    """A thread that waits for calls. `running` are those of its calls that have no outcome yet."""

    def __init__(self, running: list[Call]) -> None:
        self.running = running
        self.batch = max(call.batch for call in running)
        self.begun = threading.Event()
        self.ended = threading.Event()

    def check(self, begun_batch: int) -> None:
        """Wake the thread if all its calls have begun, or have ended."""
        self.running = [call for call in self.running if call.outcome is None]
        if not self.running:
            self.ended.set()
        if not self.running or begun_batch >= self.batch:
            self.begun.set()


class ProviderCalls:
    """Makes at most `concurrency` calls at a time, each for at most `timeout_seconds`. All methods are thread-safe."""

    def __init__(
        self,
        provider: PaymentProvider,
        concurrency: int,
        timeout_seconds: float,
        tracer: Tracer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_ended: Callable[[], object] = lambda: None
        """Called when `ended` has new outcomes, at most once in a turn of the loop. It must not block."""
        self._loop = CallLoop(provider, tracer, clock, self._on_turn)
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._lock = threading.Lock()
        """Guards all fields below."""
        self._is_open = False
        self._lanes = Lanes(concurrency)
        self._breaker = Breaker()
        self._report = CallReport()
        self._calls: dict[Kind, dict[str, Call]] = {"authorize": {}, "void": {}}
        self._held: dict[Call, None] = {}
        """Ordered by `held_at`."""
        self._ready: dict[Call, None] = {}
        """The released calls that have an outcome, in the order in which they ended."""
        self._in_flight = dict.fromkeys(LANES, 0)
        self._batch = self._begun_batch = 0
        self._waiters: list[_Waiter] = []
        self._making_room: set[Lane] = set()
        self._answer_seconds: dict[Kind, float] = {}
        self._stuck = 0
        self._stuck_since: float | None = None

    def start(self) -> None:
        """Start the thread of the calls. Called once. Before it, there is no room."""
        self._loop.start()
        with self._lock:
            self._is_open = True

    def close(self, seconds: float) -> None:
        """Begin no more calls, let the running ones end, and close the provider, all within `seconds`.

        Calls that still run near the end of the time are cancelled. They are Unanswered.
        """
        with self._lock:
            was_open, self._is_open = self._is_open, False
        if was_open:
            self._loop.close(seconds)

    def room(self, lane: Lane) -> int:
        """Return how many calls of the lane may begin now."""
        now = self._clock()
        with self._lock:
            self._drop_unreleased(now)
            self._report.breaker(self._breaker.state(now), self._breaker.open_seconds(now))
            if self._stuck_since is not None and now - self._stuck_since >= STUCK_SECONDS:
                self._stuck_since = now
                log.error("provider_calls_stuck", calls=self._stuck)
            return self._room(lane, now)

    def begin(self, requests: Sequence[Request], *, held: bool) -> list[Request]:
        """Begin calls. Return the requests for which there is no room.

        `ended` does not return a held call before `release`. While the caller has not forgotten a call, no second call
        of the same kind begins for the order. If `held` is false, the first call is then released, and `ended` returns
        its outcome with the new request.
        """
        now = self._clock()
        begun: list[Call] = []
        without_room: list[Request] = []
        with self._lock:
            self._batch += 1
            was_ready = len(self._ready)
            for lane, requests_of_lane in groupby(requests, key=_lane_of):
                room = self._room(lane, now)
                for request in requests_of_lane:
                    known = self._calls[request.kind].get(request.order_id)
                    if known is not None:
                        self._begin_again(known, request, now, held=held)
                    elif room > 0:
                        room -= 1
                        begun.append(self._begin(request, now, held=held))
                    else:
                        without_room.append(request)
            if begun:
                self._report.in_flight(self._in_flight)
                self._loop.submit(begun)
            has_more = len(self._ready) > was_ready
        if has_more:
            self.on_ended()
        return without_room

    def wait(self, order_ids: Iterable[str], seconds: float) -> dict[str, Outcome | InFlight]:
        """Return the outcomes of calls to authorize, when all have ended or after `seconds`.

        The time begins when each call has had its first turn. A call that still runs is InFlight. Orders without a call
        are left out.
        """
        with self._lock:
            known = self._calls["authorize"]
            calls = {order_id: known[order_id] for order_id in order_ids if order_id in known}
            running = [call for call in calls.values() if call.outcome is None]
            waiter = _Waiter(running) if running and seconds > 0 else None
            if waiter is not None:
                waiter.check(self._begun_batch)
                self._waiters.append(waiter)
        if waiter is not None:
            waiter.begun.wait(START_SECONDS)
            waiter.ended.wait(seconds)
        with self._lock:
            if waiter is not None:
                self._waiters.remove(waiter)
            outcomes = {order_id: call.outcome or InFlight() for order_id, call in calls.items()}
            return cast("dict[str, Outcome | InFlight]", outcomes)

    def release(self, order_ids: Iterable[str]) -> None:
        """Let `ended` return these held calls: the caller has recorded that they are in flight."""
        with self._lock:
            known = self._calls["authorize"]
            was_ready = len(self._ready)
            for order_id in order_ids:
                if order_id in known:
                    self._release(known[order_id])
            has_more = len(self._ready) > was_ready
        if has_more:
            self.on_ended()

    def ended(self, limit: int) -> list[Ended]:
        """Return at most `limit` released calls that have ended, oldest first: the same ones again until `forget`."""
        with self._lock:
            self._drop_unreleased(self._clock())
            return [Ended(call.request, call.outcome) for call in islice(self._ready, limit) if call.outcome]

    def forget(self, kind: Kind, order_ids: Iterable[str]) -> None:
        """Forget calls, because their outcome is recorded or not needed. A call that still runs keeps its room."""
        with self._lock:
            known = self._calls[kind]
            for order_id in order_ids:
                if order_id in known:
                    self._forget(known[order_id])

    def make_room(self, lane: Lane) -> None:
        """If the lane has no room, end calls that have run too long. The caller has requests that wait for room.

        A call of the lane, or one that uses shared room, may run PATIENCE_ANSWERS times as long as an average answer,
        and twice as long for each earlier attempt. The outcome of a call that is ended here is Unanswered.
        """
        now = self._clock()
        with self._lock:
            if not self._is_open or self._lanes.room(lane, now):
                return
            self._lanes.wait(lane, now)
            if lane not in self._making_room:
                self._making_room.add(lane)
                self._loop.give_up(lambda running: self._slow_calls(lane, running))

    @property
    def room_to_resume(self) -> int:
        """The room that ends a pause of new orders: a tenth of the concurrency, or 1 if the breaker is not closed."""
        with self._lock:
            return 1 if self._breaker.open_since is not None else max(1, self._concurrency // 20)

    def state(self) -> ProviderState:
        """Return the state of the breaker, and the number of running calls of each lane."""
        now = self._clock()
        with self._lock:
            since = self._breaker.open_since
            open_seconds = None if since is None else now - since
            return ProviderState(self._breaker.state(now), open_seconds, dict(self._in_flight))

    def _on_turn(self, turn: Turn) -> None:
        """Record what ended in one turn of the loop. Runs in the thread of the loop."""
        now = self._clock()
        with self._lock:
            was_ready = len(self._ready)
            # A failure counts only if no other call succeeded meanwhile.
            for end in sorted(turn.ends, key=_is_no_success) if len(turn.ends) > 1 else turn.ends:
                self._end(end, now)
            for call in turn.stopped:
                self._stuck -= 1
                self._stop(call)
            self._stuck_since = (self._stuck_since or now) if 2 * self._stuck >= self._concurrency else None
            self._begun_batch = max(self._begun_batch, turn.begun_batch or 0)
            for waiter in self._waiters:
                waiter.check(self._begun_batch)
            has_more = len(self._ready) > was_ready
            self._report.in_flight(self._in_flight)
            self._report.breaker(self._breaker.state(now), self._breaker.open_seconds(now))
        if has_more:
            self.on_ended()
        self._report.ended(turn.ends)

    def _slow_calls(self, lane: Lane, running: Collection[Call]) -> list[Call]:
        """Return the calls that `make_room` ends. Runs in the thread of the loop."""
        now = self._clock()
        with self._lock:
            self._making_room.discard(lane)
            left = {other: self._lanes.overflow(other) for other in LANES}
            left[lane] = len(running)
            slow = []
            for call in sorted(running, key=_began_at):
                if left[call.lane] and now - call.began_at > self._patience_seconds(call):
                    left[call.lane] -= 1
                    slow.append(call)
            return slow

    # The caller of each method below holds the lock.

    def _room(self, lane: Lane, now: float) -> int:
        if not self._is_open:
            return 0
        room, probes = self._lanes.room(lane, now), self._breaker.room(lane, now)
        return room if probes is None else min(room, probes)

    def _begin(self, request: Request, now: float, *, held: bool) -> Call:
        ticket = self._breaker.admit(request.lane, now)
        self._lanes.take(request.lane)
        call = Call(request, ticket, self._batch, self._timeout_seconds, now if held else None)
        if ticket.probe is not None:
            call.timeout_seconds = self._patience_seconds(call)
        self._calls[call.kind][request.order_id] = call
        self._in_flight[call.lane] += 1
        if held:
            self._held[call] = None
        return call

    def _begin_again(self, call: Call, request: Request, now: float, *, held: bool) -> None:
        if not held:
            call.request = request
            self._release(call)
        elif call.held_at is not None:
            call.held_at = now
            del self._held[call]
            self._held[call] = None

    def _release(self, call: Call) -> None:
        if call.held_at is not None:
            call.held_at = None
            del self._held[call]
            if call.outcome is not None:
                self._ready[call] = None

    def _forget(self, call: Call) -> None:
        del self._calls[call.kind][call.request.order_id]
        self._held.pop(call, None)
        self._ready.pop(call, None)
        call.is_forgotten = True
        if call.is_stopped:
            self._lanes.give(call.lane)

    def _drop_unreleased(self, now: float) -> None:
        """Forget held calls that were not released in time. Their key prevents a second charge, as after a crash."""
        while (call := next(iter(self._held), None)) is not None:
            if call.held_at is None or now - call.held_at < HELD_SECONDS:
                return
            self._forget(call)

    def _end(self, end: End, now: float) -> None:
        """Record the outcome of a call, and what it says about the provider."""
        call = end.call
        call.outcome = end.outcome
        if not call.is_forgotten and call.held_at is None:
            self._ready[call] = None
        if end.verdict == "success":
            self._breaker.succeed(call.ticket)
            average = self._answer_seconds.get(call.kind, end.seconds)
            self._answer_seconds[call.kind] = average + (end.seconds - average) * AVERAGE_WEIGHT
        elif end.verdict == "failure":
            wait_seconds = end.outcome.retry_after_seconds if isinstance(end.outcome, Refused) else 0.0
            self._breaker.fail(call.ticket, now, wait_seconds)
        else:
            self._breaker.drop(call.ticket)
            if call.kind == "authorize" and not self._breaker.has_succeeded_since(call.ticket):
                self._be_patient(call.kind, end.seconds)
        if end.is_stopped:
            self._stop(call)
        else:
            self._stuck += 1

    def _be_patient(self, kind: Kind, seconds: float) -> None:
        """Note that the provider answered no call while one ran for `seconds`. It may be slow, so wait twice as long.

        Without this, no new order would be paid while the provider is slower than `make_room` permits. If it hangs, the
        calls soon reach their time limit and open the breaker. Voids need no such rule: their attempts have no limit,
        and each waits twice as long as the one before. So a few voids that hang never delay the others for long.
        """
        average = self._answer_seconds.get(kind, 0.0)
        self._answer_seconds[kind] = max(average, min(2 * seconds, self._timeout_seconds) / PATIENCE_ANSWERS)

    def _stop(self, call: Call) -> None:
        """Count that the task of a call has ended."""
        call.is_stopped = True
        self._in_flight[call.lane] -= 1
        if call.is_forgotten:
            self._lanes.give(call.lane)

    def _patience_seconds(self, call: Call) -> float:
        """Return how long a call may run while others wait for its room."""
        longest = max(PATIENCE_SECONDS, PATIENCE_ANSWERS * self._answer_seconds.get(call.kind, 0.0))
        return float(min(self._timeout_seconds, longest * 2 ** min(call.request.attempts, 30)))


def _lane_of(request: Request) -> Lane:
    return request.lane


def _is_no_success(end: End) -> bool:
    return end.verdict != "success"


def _began_at(call: Call) -> float:
    return call.began_at
