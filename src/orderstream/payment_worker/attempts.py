"""Makes the attempts after the first, and records every answer that outlasts its batch (P2, P5).

An attempt is a row with a due time on the database's clock, not a sleep. A worker claims the row by moving that time
beyond the longest call. If the worker dies, the attempt becomes due again and is repeated with the same key.
The events go through the outbox, because no record in Kafka would repeat them.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby

import msgspec
import psycopg
from msgspec import Struct

from orderstream.domain.events import build
from orderstream.domain.order import AnyReason
from orderstream.domain.payment import (
    Charge,
    Outcome,
    PaymentState,
    Refused,
    Transition,
    Unanswered,
    VoidOutcome,
    on_attempted,
)
from orderstream.payment_worker.answers import Purchase, answer
from orderstream.payment_worker.call import Ended, Kind, Request
from orderstream.payment_worker.calls import ProviderCalls
from orderstream.payment_worker.lanes import Lane
from orderstream.payment_worker.webhook import DecidedKeys
from orderstream.postgres.connect import Connection
from orderstream.postgres.faults import is_fatal, is_transient
from orderstream.postgres.orders import items_of
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.postgres.sql import load
from orderstream.telemetry import databases, logs, metrics
from orderstream.telemetry.tracing import NO_SPANS, NO_TRACER, Operation, Spans, TraceContext, Tracer, trace_id
from orderstream.worker.due_scan import FLOOR, DueScan, TimeRange, statement_limit
from orderstream.worker.due_time import DueTime

CLAIM_ROWS = 200
NO_ROOM_SECONDS = 0.2
"""Time until the next look at due attempts for which there was no room."""
ANSWERS_MAX = 500
"""Answers that one transaction records."""
GATHER_SECONDS = 0.02
"""Shortest time between two transactions that record answers. After a longer pause, an answer does not wait."""
CLAIM_MARGIN_SECONDS = 20.0
"""A claim lasts for the time limit of a call and this margin. Until it ends, no other worker claims the payment. By
then the call has ended and its answer is recorded, unless the worker has died."""
PENDING_FIRST_SECONDS = 2.0
PENDING_LONGEST_SECONDS = 20.0
"""The shortest and the longest wait before a pending payment is checked again. The wait is half of the time that the
payment has been pending."""
OLDEST_LAG = timedelta(minutes=1)
"""Transactions commit in another order than they began. A void began at most this long before one that is shown."""
CLAIMED_LANES: tuple[Lane, ...] = ("void", "retry", "void_retry")

FINISH = Operation(databases.summary(("UPDATE", "payments")), "CLIENT", {})

SQL = load("orderstream.payment_worker")
log = logs.get()
_encode = msgspec.json.Encoder(decimal_format="number").encode


class Schedule(Struct, frozen=True):
    """When a payment is attempted again, and for how long. Times are in seconds.

    The wait doubles from `retry_base` to `retry_max`, with jitter, for `max_attempts` attempts without an answer. A
    payment that waits for the customer or the bank is voided after `pending_limit`. `call_timeout` is the time limit of
    a call.
    """

    max_attempts: int
    retry_base: float
    retry_max: float
    key_lifetime: float
    pending_limit: float
    call_timeout: float

    @property
    def oldest(self) -> float:
        """Age beyond which no order is authorized: the provider may have forgotten its key, and would charge again."""
        return self.key_lifetime / 2

    @property
    def claim(self) -> float:
        """How long a claim keeps other workers from an attempt."""
        return self.call_timeout + CLAIM_MARGIN_SECONDS

    def retry_delay(self, attempts: int) -> float:
        """Return the wait after `attempts` attempts: between half and all of the doubled time."""
        return _jitter(min(self.retry_max, self.retry_base * 2.0 ** min(attempts - 1, 30)))

    def delay(
        self, transition: Transition, *, pending_seconds: float | None = None, retry_after: float = 0.0
    ) -> float | None:
        """Return the wait before the next attempt, or None if there is no further attempt.

        `pending_seconds` is the time since the provider first said that the payment is pending.
        """
        if transition.is_pending:
            return _jitter(min(PENDING_LONGEST_SECONDS, max(PENDING_FIRST_SECONDS, (pending_seconds or 0) / 2)))
        attempts = transition.backoff_attempts
        return retry_after + self.retry_delay(attempts) if attempts else attempts


def _jitter(longest: float) -> float:
    return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing


class Claim(Struct, frozen=True):
    """A payment whose attempt is due: the columns of `claim_due`."""

    order_id: str
    state: PaymentState
    reason: AnyReason | None
    attempts: int
    amount: Decimal
    currency: str
    created_at: datetime
    traceparent: str | None
    tracestate: str | None
    too_old: bool
    pending_seconds: float | None
    due_at: datetime

    def request(self, lane: Lane) -> Request:
        """Return the call for this attempt."""
        charge = None if lane in ("void", "void_retry") else self._charge
        trace = TraceContext(self.traceparent, self.tracestate)
        return Request(self.order_id, lane, self.attempts, charge, trace, self)

    @property
    def _charge(self) -> Charge:
        return Charge(self.order_id, self.amount, self.currency, self.created_at)


class _Attempt(Struct, frozen=True):
    """What `finish_attempts` records. `began` is the state before the attempt, `delay` the seconds until the next."""

    order_id: str
    began: str
    state: str
    reason: AnyReason | None
    attempts: int
    amount: Decimal | None
    delay: float | None
    is_pending: bool


class _Payment(Struct, frozen=True):
    """A payment whose attempt was recorded: the columns of `finish_attempts`."""

    order_id: str
    state: str
    reason: AnyReason | None
    decided_at: datetime
    traceparent: str | None
    tracestate: str | None

    @property
    def trace_context(self) -> TraceContext:
        """The trace context of the record that caused the payment."""
        return TraceContext(self.traceparent, self.tracestate)


def _kind_of(call: Ended) -> Kind:
    return call.request.kind


def _claim_of(request: Request) -> Claim:
    assert isinstance(request.subject, Claim)
    return request.subject


class Attempts:
    """The timers of payment-worker. `decided` are the keys that the provider's webhook named."""

    def __init__(
        self,
        calls: ProviderCalls,
        schedule: Schedule,
        decided: DecidedKeys,
        tracer: Tracer = NO_TRACER,
        finish: Operation = FINISH,
        *,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """`finish` describes the transaction that records answers, for spans. `wake` wakes the thread of the timers."""
        self.due = DueTime(time.monotonic, wake)
        """When the next attempt is due that this process has recorded."""
        self._tracer = tracer
        self._finishing = finish
        self._calls = calls
        self._schedule = schedule
        self._decided = decided
        self._recorded_at = float("-inf")
        self._oldest_voiding_after = FLOOR
        self._due = {lane: DueScan(time.monotonic) for lane in CLAIMED_LANES}

    def has_answers(self) -> bool:
        """Say whether `record` has work."""
        return bool(self._decided) or bool(self._calls.ended(1))

    def has_calls(self) -> bool:
        """Say whether a call runs, or an answer is not recorded yet."""
        return any(self._calls.state().in_flight.values()) or self.has_answers()

    def record(self, connection: Connection) -> bool:
        """Record the calls that have ended, at most ANSWERS_MAX. Return whether there may be more."""
        time.sleep(max(0.0, self._recorded_at + GATHER_SECONDS - time.monotonic()))
        if keys := self._decided.take():
            connection.execute(SQL["bring_forward"], {"ids": keys})
            self.due.note(0)
        ended: dict[str, Ended] = {}
        for call in self._calls.ended(ANSWERS_MAX):
            # The authorization and the void of an order are recorded one after the other.
            ended.setdefault(call.request.order_id, call)
        if not ended:
            return False
        self._recorded_at = time.monotonic()
        self._record(connection, list(ended.values()))
        return len(ended) == ANSWERS_MAX

    def _record(self, connection: Connection, ended: Sequence[Ended]) -> None:
        """Record calls in one transaction and forget them. If one of them makes it fail, the others are recorded.

        The call at fault is forgotten, as after a crash: its claim expires, and the attempt is repeated with the same
        key. Its error is raised after that. Another error is raised at once, and no call is forgotten.
        """
        try:
            with self._spans(ended) if self._tracer.is_on else NO_SPANS, connection.transaction():
                next_seconds = self._finish(
                    connection, {call.request.order_id: (_claim_of(call.request), call.outcome) for call in ended}
                )
        except Exception as error:
            if is_transient(error) or is_fatal(error):
                raise
            if len(ended) > 1:
                middle = len(ended) // 2
                try:
                    self._record(connection, ended[:middle])
                finally:
                    self._record(connection, ended[middle:])
                return
            request = ended[0].request
            trace = trace_id(request.trace)
            log.error("answer_not_recorded", order_id=request.order_id, trace_id=trace, error=str(error)[:500])
            self._forget(ended)
            raise
        self._forget(ended)
        self.due.note(next_seconds)

    def _spans(self, ended: Sequence[Ended]) -> Spans:
        """Begin the span of the transaction in the trace of each recorded order."""
        return self._tracer.shared(self._finishing, (call.request.trace for call in ended), len(ended))

    def _forget(self, ended: Sequence[Ended]) -> None:
        for kind, calls in groupby(sorted(ended, key=_kind_of), key=_kind_of):
            self._calls.forget(kind, [call.request.order_id for call in calls])

    def begin(self, connection: Connection) -> bool:
        """Begin the attempts that are due, in each lane as many as it has room for. Return whether more may begin."""
        self.due.take()
        row = connection.execute(SQL["now"]).fetchone()
        assert row is not None
        (now,), more = row, False
        for lane in CLAIMED_LANES:
            room = min(self._calls.room(lane), CLAIM_ROWS)
            if not room:
                self._calls.make_room(lane)
                self.due.note(NO_ROOM_SECONDS)
                continue
            claims = self._claim(connection, lane, now, room)
            self._begin(connection, lane, claims)
            more |= len(claims) == CLAIM_ROWS
            if len(claims) == room:
                self.due.note(NO_ROOM_SECONDS)
        return more

    def _begin(self, connection: Connection, lane: Lane, claims: Sequence[Claim]) -> None:
        """Begin the calls. Record at once the payments for which no call begins."""
        requests = [claim.request(lane) for claim in claims if lane != "retry" or not claim.too_old]
        without_room = self._calls.begin(requests, held=False)
        without_call: dict[str, tuple[Claim, Outcome | VoidOutcome]] = {
            claim.order_id: (claim, Unanswered()) for claim in claims if lane == "retry" and claim.too_old
        }
        without_call |= {request.order_id: (_claim_of(request), Refused()) for request in without_room}
        if without_call:
            with connection.transaction():
                next_seconds = self._finish(connection, without_call)
            self.due.note(next_seconds)

    def _claim(self, connection: Connection, lane: Lane, now: datetime, limit: int) -> list[Claim]:
        """Claim the payments of a lane that are due, range by range, at most `limit`."""
        claims: list[Claim] = []
        due = self._due[lane]
        for part in due.ranges(now):
            started, left = time.monotonic(), limit - len(claims)
            try:
                taken = self._take(connection, lane, part, left)
            except psycopg.errors.QueryCanceled:
                if not part.is_limited:
                    raise
                due.note_timeout()
                break
            is_full = len(taken) == left
            latest = max(claim.due_at for claim in taken) if is_full else None
            due.note_scanned(part, latest, time.monotonic() - started)
            claims += taken
            if is_full:
                break
        return claims

    def _take(self, connection: Connection, lane: Lane, part: TimeRange, limit: int) -> list[Claim]:
        parameters = {
            "lane": lane,
            "after": part.after,
            "upto": part.upto,
            "limit": limit,
            "push_seconds": self._schedule.claim,
            "oldest_seconds": self._schedule.oldest,
        }
        with statement_limit(connection, part):
            return [Claim(*row) for row in connection.execute(SQL["claim_due"], parameters)]

    def measure(self, connection: Connection) -> bool:
        """Set the gauge to the age of the oldest payment in VOIDING. Return False, because no work is left."""
        row = connection.execute(SQL["oldest_voiding"], {"after": self._oldest_voiding_after}).fetchone()
        assert row is not None
        oldest, now = row
        metrics.VOIDING_OLDEST_SECONDS.set((now - (oldest or now)).total_seconds())
        self._oldest_voiding_after = max(self._oldest_voiding_after, (oldest or now) - OLDEST_LAG)
        return False

    def _attempt(self, claim: Claim, outcome: Outcome | VoidOutcome) -> _Attempt:
        """Return what an attempt changes."""
        transition = on_attempted(
            claim.state,
            claim.reason,
            claim.attempts,
            outcome,
            is_last=claim.too_old or claim.attempts + 1 >= self._schedule.max_attempts,
            is_overdue=claim.too_old or (claim.pending_seconds or 0) > self._schedule.pending_limit,
        )
        is_decided = claim.state == "PENDING" and transition.backoff_attempts is None
        return _Attempt(
            claim.order_id,
            claim.state,
            transition.state,
            transition.reason,
            transition.attempts,
            claim.amount if is_decided else None,
            self._schedule.delay(
                transition,
                pending_seconds=claim.pending_seconds,
                retry_after=outcome.retry_after_seconds if isinstance(outcome, Refused) else 0.0,
            ),
            transition.is_pending,
        )

    def _finish(self, tx: Connection, ended: dict[str, tuple[Claim, Outcome | VoidOutcome]]) -> float:
        """Record the attempts and queue their events. An attempt is dropped if its payment has changed meanwhile.

        A dropped authorization is voided if its payment has ended. Return the seconds until the next attempt of one of
        these payments; infinity if there is none.
        """
        attempts = [self._attempt(claim, outcome) for _, (claim, outcome) in sorted(ended.items())]
        found = tx.execute(SQL["finish_attempts"], {"attempts": _encode(attempts).decode()}).fetchall()
        payments = [_Payment(*row) for row in found]
        recorded = {payment.order_id for payment in payments}
        authorized = [attempt.order_id for attempt in attempts if attempt.state == "AUTHORIZED"]
        if late := [order_id for order_id in authorized if order_id not in recorded]:
            tx.execute(SQL["void_late_authorizations"], {"ids": late})
        items = items_of(tx, [payment.order_id for payment in payments if payment.state == "AUTHORIZED"])
        rows = []
        for payment in payments:
            claim, _ = ended[payment.order_id]
            purchase = Purchase(items.get(payment.order_id, ()), claim.amount, claim.currency)
            if payload := answer(payment.order_id, payment.state, payment.reason, purchase):
                rows.append(OutboxRow(build(payload, payment.decided_at), payment.trace_context))
        append(tx, rows)
        return (
            0.0 if late else min((attempt.delay for attempt in attempts if attempt.delay is not None), default=math.inf)
        )
