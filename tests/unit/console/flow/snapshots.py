"""A snapshot of a system in which all is well, for tests that change one thing in it."""

from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from orderstream.audit.under_way import Backlog, PaymentsUnderWay, UnderWay
from orderstream.console.flow.history import Points
from orderstream.console.flow.kafka_reader import OUR_TOPICS, KafkaSample
from orderstream.console.flow.postgres_reader import Pace, PostgresSample
from orderstream.console.flow.processes_reader import Instance, ProcessesSample, Rates, State
from orderstream.console.flow.snapshot import ACCEPTED, SETTLED, Snapshot, lag_of
from orderstream.console.flow.source import Reading
from orderstream.console.flow.targets import Target, service_of
from orderstream.console.flow.valkey_reader import ValkeySample
from orderstream.domain.saga import CONSUMER_GROUPS, topics_of
from orderstream.settings import SERVICES

NOW = 1_000.0
AT = datetime(2026, 11, 26, 10, 32, 37, tzinfo=UTC)
NONE = Backlog(0, None)
QUIET = UnderWay(NONE, NONE, NONE, NONE)


def answered(value: Any, **changes: Any) -> Reading[Any]:
    """Return the reading of a source that answered half a second ago."""
    return replace(Reading(value=value, answered_at=NOW - 0.5), **changes)


def silent(value: Any, seconds: float = 30.0) -> Reading[Any]:
    """Return the reading of a source whose last answer is some seconds old."""
    return Reading(value=value, answered_at=NOW - seconds, silent_since=NOW - seconds, error="timed out")


def kafka(lag: int = 0, group: str = "payment-worker") -> KafkaSample:
    """Return a sample in which a group has a lag in its first topic."""
    ends = {(topic, 0): 1_000 for topic in OUR_TOPICS}
    behind = {(group, topics_of(group)[0]): lag}
    positions = {
        name: {(topic, 0): 1_000 - behind.get((name, topic), 0) for topic in topics_of(name)}
        for name in CONSUMER_GROUPS
    }
    return KafkaSample(1, dict.fromkeys(ends, 0), ends, positions, NOW - 0.5)


def without(sample: KafkaSample, topic: str) -> KafkaSample:
    """Return a sample of a Kafka that does not have a topic."""
    return replace(sample, ends={key: end for key, end in sample.ends.items() if key[0] != topic})


def postgres(**work: Backlog) -> PostgresSample:
    """Return a sample with some work under way."""
    return PostgresSample(replace(QUIET, **work), PaymentsUnderWay(0, 0, 0), Pace(2.0, 24, 0), (), {})


def instance(
    name: str, state: State = "ready", problem: str | None = None, restarts: int = 0, page: Any = None
) -> Instance:
    """Return a process in a state."""
    target = Target(service_of(name), name, "127.0.0.1", 9_100)
    return Instance(target, state, problem, tuple(NOW - 60 + n for n in range(restarts)), Rates(), page or {}, None)


def processes(*changed: Instance) -> ProcessesSample:
    """Return a sample with one process of each service, and with these in place of those of the same service."""
    services = {found.target.service for found in changed}
    return ProcessesSample((*(instance(name) for name in SERVICES if name not in services), *changed))


def series(*values: float, seconds: float = 2.0) -> Points:
    """Return the points of a series whose last value is half a second old."""
    return tuple(
        (NOW - 0.5 - seconds * back, value) for back, value in zip(range(len(values))[::-1], values, strict=True)
    )


def well(**changes: Any) -> Snapshot:
    """Return a snapshot without problems, with changes."""
    history: dict[str, Points] = {ACCEPTED: series(12, 12, 12), SETTLED: series(12, 12, 12)}
    history |= {lag_of(group): series(0, 0, 0) for group in CONSUMER_GROUPS}
    history |= changes.pop("history", {})
    snapshot = Snapshot(
        now=NOW,
        at=AT,
        started_at=NOW - 600,
        kafka=answered(kafka()),
        postgres=answered(postgres()),
        valkey=answered(ValkeySample(0.001)),
        processes=answered(processes()),
        history=history,
        services=SERVICES,
    )
    return replace(snapshot, **changes)
