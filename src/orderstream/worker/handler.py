"""The interface of a worker service: a handler, which decides batches of events, and timers."""

import math
from collections.abc import Callable, Mapping, Sequence
from threading import Event as Signal
from typing import Protocol, TypeVar

from msgspec import Struct

from orderstream.domain.events import Event, Payload
from orderstream.kafka.envelope import Reason, Received
from orderstream.postgres.connect import Connection
from orderstream.process.gathering import Gathering
from orderstream.telemetry.tracing import Operation


class RepeatBatchError(Exception):
    """Another process decided an order of the batch at the same time. A retry of the batch finds that decision."""


class Outgoing(Struct, frozen=True):
    """An event to publish, and the record that caused it. The event continues the record's trace."""

    event: Event[Payload]
    cause: Received


class Rejected(Struct, frozen=True):
    """A record that the handler rejects. It becomes a dead letter."""

    received: Received
    reason: Reason
    detail: str


DECIDE = "decide"
"""The name of a span for a transaction without a summary."""


def nothing() -> None:
    """Do nothing after the commit."""


class BatchResult(Struct, frozen=True):
    """The result of a batch. `after_commit` runs after the commit and before the events are published.

    `summary` names the statements of the transaction and their tables, for its span. `cleanup` is the call to another
    system that `after_commit` makes, if it makes one.
    """

    emit: Sequence[Outgoing] = ()
    reject: Sequence[Rejected] = ()
    after_commit: Callable[[], None] = nothing
    summary: str = DECIDE
    cleanup: Operation | None = None


def never() -> bool:
    """Return False: the timer runs only after its interval, and ends when the process stops."""
    return False


def at_no_time() -> float:
    """Return infinity: the timer knows of no work before its interval has passed."""
    return math.inf


class Timer(Struct, frozen=True):
    """Periodic work. `run` does a bounded share of the due work, in transactions of its own.

    `run` returns whether more work is due. If so, the timer runs again before the interval has passed. It also runs
    earlier if `has_work` is true when the handler's `wake` is set, and at the monotonic time `due_at`. When that time
    becomes earlier, `wake` must be set. Both functions must return at once.

    All timers of a handler run in one thread (timers.py), and batches in another one. When the process stops, a timer
    goes on while `is_busy` is true, for at most half of the drain.
    """

    name: str
    every_seconds: float
    run: Callable[[Connection], bool]
    has_work: Callable[[], bool] = never
    is_busy: Callable[[], bool] = never
    due_at: Callable[[], float] = at_no_time


P = TypeVar("P")


class Handler(Protocol[P]):
    """One worker service. It must give the same result if a batch is processed twice."""

    group: str
    """The consumer group, which is also the name of the service."""
    topics: tuple[str, ...]
    """The topics that it consumes."""
    emits: tuple[str, ...]
    """Types of the events that it may emit, as the result of a record or by a timer."""
    gathering: Gathering
    """How long the worker waits for more records."""
    wake: Signal
    """Wakes the thread of the timers. Any thread may set it, also before the timers have started."""

    @property
    def timers(self) -> Sequence[Timer]:
        """The periodic work of the service."""
        ...

    def room(self) -> Mapping[str, int]:
        """Return how many records of a topic the next batch may have. A topic that is not named has no limit.

        While a topic has room for no record, its records wait in Kafka. Called before each poll, so it must be cheap.
        """
        ...

    def prepare(self, connection: Connection, batch: Sequence[Received], /) -> P:
        """Do slow work outside the transaction, such as calls to a provider. It must be bounded and repeatable."""
        ...

    def decide(self, tx: Connection, batch: Sequence[Received], prepared: P, /) -> BatchResult:
        """Decide the batch, or a part of it, in the transaction `tx`. Calls no other system."""
        ...
