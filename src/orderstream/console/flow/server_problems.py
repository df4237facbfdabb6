"""The problems of Kafka, Postgres and Valkey: a server that does not answer, and topics that cannot be used."""

from collections.abc import Iterator

from orderstream.console.flow.kafka_reader import OUR_TOPICS
from orderstream.console.flow.problem import (
    Problem,
    answers_again,
    counted,
    is_silent,
    said,
    silence_text,
    start_advice,
)
from orderstream.console.flow.snapshot import Snapshot

PARTITIONS_LATE_SECONDS = 15.0
"""A new topic has no leaders for a moment."""


def kafka_silent(now: Snapshot) -> Iterator[Problem]:
    """Report that Kafka does not answer."""
    since = now.kafka.silent_from(now.now)
    if since is None:
        yield from answers_again(now, now.kafka, "Kafka", "The orders that waited settle now.")
        return
    outbox = now.postgres.value.under_way.outbox if now.postgres.value is not None else None
    if outbox is not None and outbox.number >= now.outbox_limit:
        effect = f"New orders are refused with 503, because {now.outbox_limit:,} events wait in the outbox."
    else:
        effect = f"Orders are accepted and wait in the outbox{counted(outbox, 'events')}. No order settles meanwhile."
    yield Problem(
        "error",
        "kafka",
        silence_text(now, now.kafka, "Kafka", since),
        effect,
        start_advice("Kafka", now) + " Nothing is lost: waiting orders settle when Kafka answers again.",
        now.time_of(since),
        "/topics",
    )


def postgres_silent(now: Snapshot) -> Iterator[Problem]:
    """Report that Postgres does not answer."""
    since = now.postgres.silent_from(now.now)
    if since is None:
        yield from answers_again(now, now.postgres, "Postgres", "Orders are accepted again.")
        return
    yield Problem(
        "error",
        "postgres",
        silence_text(now, now.postgres, "Postgres", since),
        "New orders are refused with 503, and no order settles. Accepted orders are safe.",
        start_advice("Postgres", now) + " The services connect again by themselves.",
        now.time_of(since),
    )


def valkey_silent(now: Snapshot) -> Iterator[Problem]:
    """Report that Valkey does not answer."""
    since = now.valkey.silent_from(now.now)
    if since is None:
        yield from answers_again(now, now.valkey, "Valkey", "Reads come from the cache again.")
        return
    yield Problem(
        "warning",
        "valkey",
        silence_text(now, now.valkey, "Valkey", since),
        "Orders are not affected. Postgres answers every read, which is slower.",
        start_advice("Valkey", now),
        now.time_of(since),
    )


def partitions_without_leader(now: Snapshot) -> Iterator[Problem]:
    """Report that Kafka answers for some partitions only."""
    sample = now.kafka.value
    if sample is None or sample.problem is None or is_silent(now.kafka, now):
        return
    since = max(sample.measured_at, now.started_at)
    if now.now - since > PARTITIONS_LATE_SECONDS:
        yield Problem(
            "warning",
            "kafka",
            f"Kafka answers, but not for all partitions since {said(now, since)} ({sample.problem}).",
            "Orders in those partitions wait. The offsets and the lag on this page are old.",
            "If a broker is down, start it again. Otherwise look at the leaders of the partitions.",
            now.time_of(since),
            "/topics",
        )


def missing_topics(now: Snapshot) -> Iterator[Problem]:
    """Report topics that do not exist."""
    sample = now.kafka.value
    if sample is None or sample.problem is not None or is_silent(now.kafka, now):
        return
    known = {topic for topic, _ in sample.ends}
    missing = [topic for topic in OUR_TOPICS if topic not in known]
    if missing and now.now - now.started_at > PARTITIONS_LATE_SECONDS:
        yield Problem(
            "error",
            "kafka",
            f"{len(missing)} of {len(OUR_TOPICS)} topics do not exist in Kafka, the first is {missing[0]}.",
            "Orders are accepted. Their events wait until the topics exist.",
            "Create the topics with this command: orderstream topics",
            link="/topics",
        )
