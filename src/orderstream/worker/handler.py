"""What a worker service writes: a handler, which decides batches of events, and timers, which act on the clock."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from msgspec import Struct

from orderstream.domain.events import Event, Payload
from orderstream.kafka.envelope import Reason, Received
from orderstream.postgres.connect import Connection


class RepeatBatchError(Exception):
    """Somebody else decided an order of the batch at the same time: decide again, and find what was decided."""


class Outgoing(Struct, frozen=True):
    """An event to publish, and the record that caused it, whose trace it continues."""

    event: Event[Payload]
    cause: Received


class Rejected(Struct, frozen=True):
    """A record that the handler read but cannot act on; it becomes a dead letter."""

    received: Received
    reason: Reason
    detail: str


def nothing() -> None:
    """Do nothing after the commit."""


class Decision(Struct, frozen=True):
    """What came of a batch. `after_commit` runs once the decision is durable, before anything is published."""

    emit: Sequence[Outgoing] = ()
    reject: Sequence[Rejected] = ()
    after_commit: Callable[[], None] = nothing


class Timer(Struct, frozen=True):
    """Work that the clock calls for. `run` takes a bounded share of it, in transactions of its own.

    It returns whether more of it is due, in which case it runs again before the interval is over.
    """

    name: str
    every_seconds: float
    run: Callable[[Connection], bool]


P = TypeVar("P")


class Handler(Protocol[P]):
    """One worker service. Everything it does must come out the same when it is done twice."""

    group: str
    """Consumer group, which is the service's name."""
    topics: tuple[str, ...]
    """What it consumes."""
    emits: tuple[str, ...]
    """Types of the events that it may emit, as an answer or by a timer."""

    @property
    def timers(self) -> Sequence[Timer]:
        """Work that the clock calls for."""
        ...

    def prepare(self, connection: Connection, batch: Sequence[Received], /) -> P:
        """Do what may take time and must not hold a transaction, such as asking a provider; bounded, repeatable."""
        ...

    def decide(self, tx: Connection, batch: Sequence[Received], prepared: P, /) -> Decision:
        """Decide the batch, or a part of it, within the transaction `tx`. Never calls out."""
        ...
