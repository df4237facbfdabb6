"""Bad records of every kind in every topic: each of the three workers makes dead letters of them and continues (P9)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from uuid import uuid4

import msgspec

from orderstream.cache import CacheInvalidator
from orderstream.domain.events import build, topic_of
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.kafka.envelope import Reason
from orderstream.kafka.topics import dead_letter_topic
from orderstream.order_service.handler import OrderHandler
from orderstream.order_service.watchdog import Watchdog, WatchdogSchedule
from orderstream.payment_worker.providers.simulated import SimulatedProvider
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.integration.decisions.orders import created, place, row
from tests.integration.worker.running import running
from tests.load.soak import poison
from tests.load.soak.poison import CONSUMERS
from tests.support.contracts import assert_dead_letter_headers
from tests.support.payments import payments
from tests.support.samples import AT
from tests.support.topics import Tap, begin_here, end_offsets, offsets_of, publish, publish_events
from tests.support.waiting import wait_until

REASONS: dict[str, Reason] = {
    "not_json": "NOT_JSON",
    "no_key": "NO_KEY",
    "no_value": "NO_VALUE",
    "unknown_type": "UNKNOWN_TYPE",
    "unknown_version": "UNKNOWN_VERSION",
    "wrong_payload": "BAD_PAYLOAD",
    "large": "BAD_PAYLOAD",
    "key_mismatch": "KEY_MISMATCH",
    "unknown_order": "UNKNOWN_ORDER",
}
HEADERS = {"traceparent": b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "x-mine": b"\xff"}


def _poison() -> Iterator[tuple[Reason, tuple[str, bytes | None, bytes | None]]]:
    """Yield each kind of bad record for each topic that a worker reads: the expected reason, topic, key and value."""
    for payload, (kind, reason) in product(poison._PAYLOADS, REASONS.items()):
        event = build(payload(str(uuid4())), AT)
        key, spoiled = poison._spoiled(kind, event.correlation_id, msgspec.to_builtins(event))
        value = None if kind == "no_value" else spoiled
        if kind == "key_mismatch":
            key = str(uuid4())
        yield reason, (topic_of(event.type), key.encode() if key else None, value)


@contextmanager
def _workers(settings: Settings) -> Iterator[None]:
    """Run the three workers as their processes do. The block fails if one of them stops."""
    cache = CacheInvalidator(settings.redis_url, settings.cache_budget_seconds)
    with ExitStack() as stack:
        payment_worker = stack.enter_context(payments(SimulatedProvider(success_rate=1, throw_rate=0)))
        loops = [
            stack.enter_context(running(handler, settings, ready=False))
            for handler in (
                payment_worker.handler,
                InventoryHandler(),
                OrderHandler(cache, Watchdog(WatchdogSchedule()).timers),
            )
        ]
        for loop in loops:
            loop.wait_ready()
        yield


def _caught_up(settings: Settings) -> bool:
    brokers = settings.kafka_brokers
    return all(
        offsets_of(brokers, group, topics) == end_offsets(brokers, topics) for group, topics in CONSUMERS.items()
    )


def test_every_bad_record_is_one_dead_letter_of_each_reader_and_a_good_order_is_confirmed(
    settings: Settings, connection: Connection
) -> None:
    records = list(_poison())
    assert {name for _, (name, *_) in records} == {name for topics in CONSUMERS.values() for name in topics}
    connection.execute("INSERT INTO inventory VALUES ('SKU-1', 1, 0)")
    good = place(connection)
    for group in CONSUMERS:
        begin_here(settings.kafka_brokers, group)
    with Tap(settings.kafka_brokers, map(dead_letter_topic, CONSUMERS)) as tap, _workers(settings):
        places = publish(settings.kafka_brokers, [record for _, record in records], HEADERS)
        publish_events(settings.kafka_brokers, [created(good)])
        wait_until(lambda: row(connection, "SELECT status FROM orders") == ("CONFIRMED",), 60, "the good order settles")
        wait_until(lambda: _caught_up(settings), 30, "every offset is committed")
        letters = tap.so_far()
    expected = {
        (dead_letter_topic(group), *place): (reason, key, value)
        for place, (reason, (name, key, value)) in zip(places, records, strict=True)
        for group, topics in CONSUMERS.items()
        if name in topics
    }
    found = set()
    for letter in letters:
        notes = assert_dead_letter_headers(letter.headers)
        came_from = (letter.topic, notes["dlq-topic"], int(notes["dlq-partition"]), int(notes["dlq-offset"]))
        reason, key, value = expected[came_from]
        assert (notes["dlq-reason"], letter.key, letter.value == value) == (reason, key, True), came_from
        assert (notes["dlq-attempts"] == "0") == (reason != "UNKNOWN_ORDER"), came_from
        assert {name: letter.headers[name] for name in HEADERS} == HEADERS
        found.add(came_from)
    assert found == set(expected)
    assert len(letters) == len(expected)
