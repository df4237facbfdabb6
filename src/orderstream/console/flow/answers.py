"""What `GET /api/flow` answers, built from a snapshot. The overview shows the same values."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct

from orderstream.console.flow.postgres_reader import LatestOrder
from orderstream.console.flow.problem import Problem
from orderstream.console.flow.problems import all_is_well, problems
from orderstream.console.flow.processes_reader import Rates
from orderstream.console.flow.snapshot import (
    ACCEPTED,
    DEAD_LETTERS,
    LAG,
    OUTBOX_AGE,
    SETTLED,
    Snapshot,
    end_of,
    lag_of,
)
from orderstream.console.flow.source import Reading
from orderstream.domain.events import TOPICS
from orderstream.domain.saga import CONSUMER_GROUPS, topics_of
from orderstream.kafka.topics import dead_letter_topic
from orderstream.local.backlog import COUNTED_MAX
from orderstream.settings import SERVICES


class SourceAnswer(Struct, frozen=True, rename="camel"):
    """A server, or the processes: whether it answers, how old its figures are, and since when it is silent."""

    name: str
    answers: bool
    age_seconds: float | None
    silent_since: datetime | None = None
    error: str | None = None


class InstanceAnswer(Struct, frozen=True, rename="camel"):
    """One process."""

    name: str
    address: str
    state: str
    problem: str | None
    restarts: int
    memory_bytes: float | None
    rates: Rates


ServiceState = Literal["ready", "partly ready", "not ready", "down", "not watched"]


class ServiceAnswer(Struct, frozen=True, rename="camel"):
    """A service with its processes. The rates are sums over them, or means for times and shares."""

    name: str
    state: ServiceState
    ready: int
    instances: tuple[InstanceAnswer, ...]
    rates: Rates
    lag: int | None = None
    """Records that its consumer group has not taken yet. None: it has no group, or Kafka was never read."""


class ProviderAnswer(Struct, frozen=True, rename="camel"):
    """The payment provider, as the payment-workers know it."""

    breaker: str
    down_seconds: float
    calls_in_flight: int
    paused_partitions: int


class TopicFlow(Struct, frozen=True, rename="camel"):
    """A topic: its partitions, the records that it holds, and how many come in a second."""

    name: str
    partitions: int
    records: int
    per_second: float | None


class PartitionLag(Struct, frozen=True, rename="camel"):
    """The position of a group in a partition."""

    topic: str
    partition: int
    next: int
    end: int
    lag: int


class GroupFlow(Struct, frozen=True, rename="camel"):
    """A consumer group. `partitions` has those with the largest lag, at most PARTITIONS_SHOWN."""

    name: str
    lag: int
    lag_by_topic: dict[str, int]
    growth_per_second: float | None
    partitions: tuple[PartitionLag, ...]
    partitions_left_out: int


class Waiting(Struct, frozen=True, rename="camel"):
    """Rows that wait. `isLimit` means that there may be more."""

    number: int
    is_limit: bool
    oldest_seconds: float | None


class PaymentsFlow(Struct, frozen=True, rename="camel"):
    """Payments that are not finished. Each number ends at the limit of the count."""

    without_answer: int
    pending: int
    voiding: int


class OrdersFlow(Struct, frozen=True, rename="camel"):
    """Orders under way, the pace of orders, and the newest ones."""

    open: Waiting
    uncompensated: Waiting
    accepted_per_second: float | None
    settled_per_second: float | None
    newest_by_status: dict[str, int]
    latest: tuple[LatestOrder, ...]


class Point(Struct, frozen=True, array_like=True):
    """A point of a series: seconds before `asOf`, and the value."""

    seconds_ago: float
    value: float


class Flow(Struct, frozen=True, rename="camel"):
    """The state of the whole system at one moment. Parts are null until they were read for the first time."""

    as_of: datetime
    summary: str
    problems: tuple[Problem, ...]
    sources: tuple[SourceAnswer, ...]
    services: tuple[ServiceAnswer, ...]
    provider: ProviderAnswer | None
    topics: tuple[TopicFlow, ...]
    groups: tuple[GroupFlow, ...]
    outbox: Waiting | None
    refused_records: Waiting | None
    payments: PaymentsFlow | None
    orders: OrdersFlow | None
    dead_letters: int | None
    """Records in the dead-letter topics."""
    history: dict[str, tuple[Point, ...]]


PARTITIONS_SHOWN = 100
SERIES = (ACCEPTED, SETTLED, LAG, OUTBOX_AGE, DEAD_LETTERS)


def flow(now: Snapshot) -> Flow:
    """Return the answer for a snapshot."""
    found = tuple(problems(now))
    kafka, postgres = now.kafka.value, now.postgres.value
    work = None if postgres is None else postgres.under_way
    letters = None if kafka is None else sum(kafka.records_in(dead_letter_topic(group)) for group in CONSUMER_GROUPS)
    return Flow(
        as_of=now.at,
        summary=summary(now, found),
        problems=found,
        sources=_sources(now),
        services=services(now),
        provider=_provider(now),
        topics=topics(now),
        groups=tuple(_group(now, group) for group in CONSUMER_GROUPS) if kafka is not None else (),
        outbox=None if work is None else _waiting(work.outbox),
        refused_records=None if work is None else _waiting(work.refused),
        payments=None
        if postgres is None
        else PaymentsFlow(postgres.payments.without_answer, postgres.payments.pending, postgres.payments.voiding),
        orders=_orders(now),
        dead_letters=letters,
        history={name: _points(now, name) for name in SERIES},
    )


def summary(now: Snapshot, found: Sequence[Problem]) -> str:
    """Return one sentence on the whole system."""
    wrong = [problem for problem in found if problem.severity != "notice"]
    if not wrong:
        return all_is_well(now)
    return f"{len(wrong)} problem{'s' if len(wrong) > 1 else ''}. {wrong[0].text}"


def _sources(now: Snapshot) -> tuple[SourceAnswer, ...]:
    readings: dict[str, Reading[Any]] = {
        "kafka": now.kafka, "postgres": now.postgres, "valkey": now.valkey, "processes": now.processes
    }  # fmt: skip
    return tuple(_source(now, name, reading) for name, reading in readings.items())


def _source(now: Snapshot, name: str, reading: Reading[Any]) -> SourceAnswer:
    since, age = reading.silent_from(now.now), reading.age(now.now)
    return SourceAnswer(
        name,
        since is None and age is not None,
        None if age is None else round(age, 1),
        None if since is None else now.time_of(since),
        reading.error,
    )


def services(now: Snapshot) -> tuple[ServiceAnswer, ...]:
    """Return our services, and then further ones that were found among the processes."""
    seen = () if now.processes.value is None else [found.target.service for found in now.processes.value.instances]
    return tuple(_service(now, name) for name in dict.fromkeys([*SERVICES, *now.services, *seen]))


def _service(now: Snapshot, name: str) -> ServiceAnswer:
    found = now.instances_of(name)
    instances = tuple(
        InstanceAnswer(
            instance.target.name,
            f"{instance.target.host}:{instance.target.port}",
            instance.state,
            instance.problem,
            len(instance.restarts),
            instance.memory_bytes,
            instance.rates,
        )
        for instance in found
    )
    ready = sum(instance.state == "ready" for instance in instances)
    lag = now.lag(name) if name in CONSUMER_GROUPS else None
    rates = _together([instance.rates for instance in found])
    return ServiceAnswer(name, _state(now, name, instances, ready), ready, instances, rates, lag)


def _state(now: Snapshot, name: str, instances: Sequence[InstanceAnswer], ready: int) -> ServiceState:
    if not instances and (name not in now.services or now.processes.value is None):
        return "not watched"
    if instances and ready == len(instances):
        return "ready"
    if ready:
        return "partly ready"
    return "not ready" if any(instance.state == "not ready" for instance in instances) else "down"


def _together(rates: Sequence[Rates]) -> Rates:
    def known(field: str) -> list[float]:
        return [value for each in rates if (value := getattr(each, field)) is not None]

    def added(field: str) -> float | None:
        return sum(known(field)) if known(field) else None

    def mean(field: str) -> float | None:
        return sum(known(field)) / len(known(field)) if known(field) else None

    return Rates(
        records_per_second=added("records_per_second"),
        events_per_second=added("events_per_second"),
        batch_seconds=mean("batch_seconds"),
        requests_per_second=added("requests_per_second"),
        post_p99_seconds=max(known("post_p99_seconds"), default=None),
        cache_hits=mean("cache_hits"),
    )


def _provider(now: Snapshot) -> ProviderAnswer | None:
    state = now.provider
    if state is None:
        return None
    return ProviderAnswer(state.breaker_name, state.down_seconds, state.calls_in_flight, state.paused_partitions)


def topics(now: Snapshot) -> tuple[TopicFlow, ...]:
    """Return our topics that exist."""
    sample = now.kafka.value
    if sample is None:
        return ()
    counted: dict[str, int] = {}
    for topic, _ in sample.ends:
        counted[topic] = counted.get(topic, 0) + 1
    wanted = (*TOPICS, *map(dead_letter_topic, CONSUMER_GROUPS))
    return tuple(
        TopicFlow(topic, counted[topic], sample.records_in(topic), now.rate(end_of(topic)))
        for topic in wanted
        if topic in counted
    )


def _group(now: Snapshot, group: str) -> GroupFlow:
    sample = now.kafka.value
    assert sample is not None
    lags, positions = sample.lag(group), sample.next[group]
    by_topic = dict.fromkeys(topics_of(group), 0)
    for (topic, _), lag in lags.items():
        by_topic[topic] = by_topic.get(topic, 0) + lag
    ordered = sorted(lags, key=lambda key: (-lags[key], key))
    shown = sorted(ordered[:PARTITIONS_SHOWN])
    return GroupFlow(
        name=group,
        lag=sum(lags.values()),
        lag_by_topic=by_topic,
        growth_per_second=now.rate(lag_of(group)),
        partitions=tuple(PartitionLag(*key, positions[key], sample.ends[key], lags[key]) for key in shown),
        partitions_left_out=len(ordered) - len(shown),
    )


def _waiting(backlog: Any) -> Waiting:
    return Waiting(backlog.number, backlog.number >= COUNTED_MAX, backlog.oldest_seconds)


def _orders(now: Snapshot) -> OrdersFlow | None:
    sample = now.postgres.value
    if sample is None:
        return None
    return OrdersFlow(
        open=_waiting(sample.under_way.open),
        uncompensated=_waiting(sample.under_way.uncompensated),
        accepted_per_second=now.mean(ACCEPTED),
        settled_per_second=now.mean(SETTLED),
        newest_by_status=sample.newest_by_status,
        latest=sample.latest,
    )


def _points(now: Snapshot, name: str) -> tuple[Point, ...]:
    return tuple(Point(round(now.now - at, 1), round(value, 3)) for at, value in now.history.get(name, ()))
