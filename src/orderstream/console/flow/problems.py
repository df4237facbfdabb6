"""Says in words what is wrong right now, what it means for orders, and what to do. Pure functions over a snapshot.

A consequence is not reported beside its cause: while Kafka is silent, the services that wait for it are no problem of
their own.
"""

import itertools
from collections.abc import Callable, Iterator

from orderstream.console.flow.history import grown
from orderstream.console.flow.problem import Problem, Severity, counted, duration, is_silent, limited, number, said
from orderstream.console.flow.processes_reader import Instance
from orderstream.console.flow.server_problems import (
    kafka_silent,
    missing_topics,
    partitions_without_leader,
    postgres_silent,
    valkey_silent,
)
from orderstream.console.flow.snapshot import ACCEPTED, SETTLED, Snapshot, lag_of, letters_of
from orderstream.console.flow.source import UNWATCHED_SECONDS
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.local.backlog import ORDER_LATE_SECONDS, OUTBOX_LATE_SECONDS

_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "notice")

LAG_MIN = 100
LAG_SECONDS = 30.0
"""A lag is growing if it is above LAG_MIN and has grown over LAG_SECONDS."""
LETTERS_SECONDS = 300.0
RESTARTS_MIN = 2
"""Restarts within 5 minutes that are a problem. A single one is a notice."""
OLD_SECONDS = 3 * UNWATCHED_SECONDS


def problems(now: Snapshot) -> list[Problem]:
    """Return the problems, the worst first, and of the same severity the oldest first."""
    found = [problem for rule in _RULES for problem in rule(now)]
    return sorted(found, key=lambda problem: (_SEVERITIES.index(problem.severity), problem.since or now.at))


def all_is_well(now: Snapshot) -> str:
    """Return one calm sentence with the figures, for a snapshot without errors and warnings."""
    if now.kafka.value is None or not now.kafka.value.ends or now.postgres.value is None:
        return "The first figures are on their way."
    lag = sum(now.lag(group) or 0 for group in CONSUMER_GROUPS)
    outbox = now.postgres.value.under_way.outbox.number
    accepted, settled = now.mean(ACCEPTED), now.mean(SETTLED)
    rates = f"{accepted or 0:,.0f} orders accepted and {settled or 0:,.0f} settled per second"
    waiting = "nothing waits" if not lag + outbox else f"{lag:,} records and {outbox:,} events are on their way"
    return f"All is well: {rates}, and {waiting}."


_WITHOUT = {
    "api-gateway": "No order is accepted or read.",
    "outbox-relay": "Orders are accepted and wait in the outbox.",
    "payment-worker": "Orders are accepted and wait for their payment.",
    "inventory-worker": "Orders are paid and wait for their stock.",
    "order-service": "Payments and stock are decided, but no order settles.",
}
"""By service: what happens to orders while none of its processes works."""


def _services(now: Snapshot) -> Iterator[Problem]:
    for service in now.services:
        instances = now.instances_of(service)
        silent = [found for found in instances if found.state in ("no answer", "ended")]
        if now.processes.value is not None and len(silent) == len(instances):
            yield _down(now, service)
        elif silent:
            yield Problem(
                "warning",
                service,
                f"{len(silent)} of {len(instances)} processes of {service} do not answer: {_names(silent)}.",
                "The other processes take over its work. Orders may take some seconds longer.",
                _restart(now, service),
                link=_processes(now),
            )
        if not _waits_for_a_server(now):
            yield from (_not_ready(now, found) for found in instances if found.state == "not ready")
        yield from _restarts(now, service, instances)


def _down(now: Snapshot, service: str) -> Problem:
    outbox = now.postgres.value.under_way.outbox if now.postgres.value is not None else None
    effect = _WITHOUT.get(service, "Its events wait in Kafka.")
    if service == "outbox-relay" and outbox is not None:
        effect = effect.rstrip(".") + counted(outbox, "events") + "."
    lag = now.lag(service) if service in CONSUMER_GROUPS else None
    if lag:
        effect += f" {lag:,} records wait for it in Kafka."
    advice = _restart(now, service) + " Nothing is lost."
    return Problem("error", service, f"{service} does not answer.", effect, advice, link=_processes(now))


def _not_ready(now: Snapshot, instance: Instance) -> Problem:
    name = instance.target.name
    why = "is starting" if instance.problem == "starting" else f"is not ready: {instance.problem}"
    return Problem(
        "notice" if instance.problem == "starting" else "warning",
        name,
        f"{name} {why}.",
        "Its orders wait. Other processes of the service go on.",
        f"If this lasts, read the log of {name}.",
        link=_processes(now),
    )


def _restarts(now: Snapshot, service: str, instances: list[Instance]) -> Iterator[Problem]:
    times = sorted(at for instance in instances for at in instance.restarts)
    if not times:
        return
    many = len(times) >= RESTARTS_MIN
    yield Problem(
        "warning" if many else "notice",
        service,
        f"{service} has restarted {len(times)} times in the last 5 minutes."
        if many
        else f"{service} has restarted at {said(now, times[0])}.",
        "No order is lost: the service repeats the work that it had not finished.",
        f"Read the log of {service} to see why." if many else "You do not need to do anything.",
        now.time_of(times[0]),
        _processes(now),
    )


def _relay(now: Snapshot) -> Iterator[Problem]:
    sample = now.postgres.value
    if sample is None or is_silent(now.kafka, now) or is_silent(now.postgres, now) or _has_none(now, "outbox-relay"):
        return
    outbox = sample.under_way.outbox
    if outbox.oldest_seconds is not None and outbox.oldest_seconds > OUTBOX_LATE_SECONDS:
        yield Problem(
            "warning",
            "outbox-relay",
            f"outbox-relay is behind: {number(outbox)} events wait to be published, the oldest for"
            f" {duration(outbox.oldest_seconds)}.",
            "New orders are accepted and settle later.",
            "If the number grows, start another outbox-relay (REPLICAS_OUTBOX_RELAY), or read its log.",
            now.time_of(now.now - outbox.oldest_seconds),
            "/topics",
        )


def _lag(now: Snapshot) -> Iterator[Problem]:
    if is_silent(now.kafka, now):
        return
    for group in CONSUMER_GROUPS:
        lag = now.lag(group)
        change = grown(now.history.get(lag_of(group), ()), now.now, LAG_SECONDS)
        if lag is None or lag < LAG_MIN or change is None or change[1] < LAG_SECONDS / 3 or _has_none(now, group):
            continue
        slope = change[0] / change[1]
        provider = now.provider if group == "payment-worker" else None
        if provider is not None and (provider.breaker or provider.paused_partitions):
            continue  # The provider is the cause, and has a problem of its own.
        if slope >= 1:
            yield Problem(
                "warning",
                group,
                f"{group} is too slow: {lag:,} records wait for it, and {slope:,.0f} more every second.",
                "Orders take longer, and longer still while this lasts. Nothing is lost.",
                f"Start more processes of {group} (REPLICAS_{group.upper().replace('-', '_')}), or look at what it"
                " waits for.",
                link=f"/topics#{group}",
            )
        elif slope <= -1:
            yield Problem(
                "notice",
                group,
                f"{group} is catching up: {lag:,} records wait for it, and it needs about {duration(lag / -slope)}.",
                "Orders take longer until then.",
                "You do not need to do anything.",
                link=f"/topics#{group}",
            )


def _provider(now: Snapshot) -> Iterator[Problem]:
    provider = now.provider
    if provider is None:
        return
    if provider.breaker > 0:
        since = now.now - provider.down_seconds
        waiting = now.postgres.value.payments.without_answer if now.postgres.value is not None else 0
        yield Problem(
            "error",
            "provider",
            f"The payment provider has been down since {said(now, since)} (breaker {provider.breaker_name}).",
            f"Orders are accepted and wait for their payment{f' ({limited(waiting)} of them)' if waiting else ''}."
            " No attempt is counted against them.",
            "Ask the provider. When it answers again, payment-worker goes on by itself.",
            now.time_of(since),
            f"/topics#{CONSUMER_GROUPS[0]}",
        )
    elif provider.paused_partitions:
        yield Problem(
            "warning",
            "payment-worker",
            f"payment-worker has no room for more calls: {provider.paused_partitions} partitions are paused.",
            f"Orders wait in Kafka until the provider answers ({provider.calls_in_flight:,} calls in flight).",
            "If the provider is only slow, start more processes of payment-worker, or raise PAYMENT_CONCURRENCY.",
            link="/topics#payment-worker",
        )


def _orders(now: Snapshot) -> Iterator[Problem]:
    sample = now.postgres.value
    if sample is None or is_silent(now.postgres, now):
        return
    work = sample.under_way
    if (age := work.open.oldest_seconds) is not None and age > ORDER_LATE_SECONDS:
        yield Problem(
            "warning",
            "orders",
            f"An order has been open for {duration(age)}. Most orders settle within a second.",
            "order-service repeats the first event of such an order, and ends it after 15 minutes.",
            "Look at the order to see what it waits for.",
            now.time_of(now.now - age),
            "/orders?stuck=true",
        )
    if (age := work.uncompensated.oldest_seconds) is not None and age > ORDER_LATE_SECONDS:
        yield Problem(
            "warning",
            "orders",
            f"An aborted order has not been compensated for {duration(age)}."
            if work.uncompensated.number == 1
            else f"{number(work.uncompensated)} aborted orders are not compensated, the oldest for {duration(age)}.",
            "Their payment is not voided or their stock is not released yet. order-service repeats the abort.",
            "Look at the orders to see what they wait for.",
            now.time_of(now.now - age),
            "/orders?compensating=true",
        )
    if work.refused.number:
        yield Problem(
            "warning",
            "refused-records",
            f"Kafka has refused {number(work.refused)} record{'s' if work.refused.number > 1 else ''}."
            " The table refused_records keeps every refused record.",
            "Their orders may not settle until the records are published.",
            "Fix the topic's setting, then run: orderstream refused redrive",
            now.time_of(now.now - (work.refused.oldest_seconds or 0)),
        )


def _letters(now: Snapshot) -> Iterator[Problem]:
    for group in CONSUMER_GROUPS:
        points = now.history.get(letters_of(group), ())
        change = grown(points, now.now, LETTERS_SECONDS)
        if change is None or change[0] <= 0:
            continue
        first = next(at for (_, before), (at, after) in itertools.pairwise(points) if after > before)
        number = int(change[0])
        yield Problem(
            "warning",
            f"{group} dead letters",
            f"{group} could not process {number:,} record{'s' if number > 1 else ''} in the last 5 minutes.",
            "The records are dead letters now. Their orders may not settle until you redrive them.",
            "Read the reason of the dead letters, fix the cause, and redrive them.",
            now.time_of(first),
            f"/dead-letters?service={group}",
        )


def _own_data(now: Snapshot) -> Iterator[Problem]:
    age = now.processes.age(now.now)
    if (age if age is not None else now.now - now.started_at) > OLD_SECONDS:
        why = f" ({now.processes.error})" if now.processes.error else ""
        yield Problem(
            "warning",
            "console",
            f"The console has no new figures of the services for {duration(age or now.now - now.started_at)}{why}.",
            "Orders are not affected. This page may show an old state of the services.",
            "Read the log of the console. If its processes are named by CONSOLE_INSTANCES, check the names.",
        )
    if now.processes.value is not None and now.processes.value.left_out:
        yield Problem(
            "notice",
            "console",
            f"The console asks only some of the processes. {now.processes.value.left_out} more are not shown.",
            "Orders are not affected.",
            "Name fewer processes in CONSOLE_INSTANCES.",
        )


_RULES: tuple[Callable[[Snapshot], Iterator[Problem]], ...] = (
    *(
        kafka_silent,
        postgres_silent,
        valkey_silent,
        _services,
        _relay,
        _lag,
        _provider,
        _orders,
        partitions_without_leader,
        missing_topics,
        _letters,
        _own_data,
    ),
)


def _restart(now: Snapshot, service: str) -> str:
    return f"The local stack restarts {service} by itself." if now.local else f"Start {service} again."


def _waits_for_a_server(now: Snapshot) -> bool:
    return is_silent(now.kafka, now) or is_silent(now.postgres, now)


def _has_none(now: Snapshot, service: str) -> bool:
    """Whether a service has no process that answers. Its absence has a problem of its own."""
    instances = now.instances_of(service)
    return bool(service in now.services and all(found.state in ("no answer", "ended") for found in instances))


def _processes(now: Snapshot) -> str | None:
    return "/processes" if now.local else None


def _names(instances: list[Instance]) -> str:
    names = [instance.target.name for instance in instances]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
