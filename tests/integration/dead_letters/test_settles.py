"""A bad record is found, understood and redriven with the commands, while the workers run, and its order settles."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import pytest

from orderstream.cache import CacheInvalidator
from orderstream.dead_letters.advice import ADVICE
from orderstream.inventory_worker.handler import InventoryHandler
from orderstream.kafka.topics import ensure_topics
from orderstream.order_service.handler import OrderHandler
from orderstream.payment_worker.providers.simulated import SimulatedProvider
from orderstream.postgres.connect import Connection
from orderstream.settings import Settings
from tests.integration.decisions.orders import created, place, row
from tests.integration.worker.running import running
from tests.support.letters import with_prefix
from tests.support.payments import payments
from tests.support.topics import publish_events
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)


@contextmanager
def _workers(settings: Settings) -> Iterator[None]:
    cache = CacheInvalidator(settings.redis_url, settings.cache_budget_seconds)
    with ExitStack() as stack:
        payment = stack.enter_context(payments(SimulatedProvider(success_rate=1, throw_rate=0)))
        handlers = (payment.handler, InventoryHandler(), OrderHandler(cache, ()))
        loops = [stack.enter_context(running(handler, settings, ready=False)) for handler in handlers]
        for loop in loops:
            loop.wait_ready()
        yield


def _dlq(settings: Settings, *words: str, exit_code: int = 0) -> Any:
    """Run a command in a process of its own, because the workers of the test write their logs to this one's output."""
    names = ("postgres_url", "redis_url", "kafka_brokers", "kafka_topic_prefix", "kafka_partitions")
    env = os.environ | {name.upper(): str(getattr(settings, name)) for name in names}
    argv = [sys.executable, "-m", "orderstream.cli", "dlq", *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == exit_code, done.stdout + done.stderr
    return json.loads(done.stdout) if "--json" in words else done.stdout


def test_a_bad_record_is_found_understood_and_redriven_and_its_order_settles(
    settings: Settings, connection: Connection
) -> None:
    own = with_prefix(settings, f"settles-{os.getpid()}-")
    ensure_topics(own)
    order_id = str(uuid4())
    event = created(order_id)
    with _workers(own):
        publish_events(own.kafka_brokers, [event], topic_prefix=own.kafka_topic_prefix)

        def letters(number: int) -> Any:
            found = _dlq(own, "list", "--order", order_id, "--json")["letters"]
            return found if len(found) == number else []

        (letter,) = wait_until(lambda: letters(1), 30, "the dead letter")
        assert (letter["service"], letter["reason"]) == ("payment-worker", "UNKNOWN_ORDER")
        where = (letter["service"], str(letter["partition"]), str(letter["offset"]))
        shown = _dlq(own, "show", *where, "--json")
        assert shown["advice"] == ADVICE["UNKNOWN_ORDER"]
        assert json.loads(shown["bytes"]["value"]["text"])["correlationId"] == order_id
        # Redriven too early, it fails again: a second letter, with its number of tries.
        _dlq(own, "redrive", "--order", order_id, "--yes", "--note", "too early")
        again, first = wait_until(lambda: letters(2), 30, "the second dead letter")
        assert (again["tries"], again["state"], first["state"]) == (1, "open", "redriven")
        place_of = "{service}/{partition}@{offset}".format_map
        assert (first["failedAgain"], again["redrivenFrom"]) == (place_of(again), place_of(first))
        # The order is there now, for example because the database was restored completely.
        place(connection, order_id=order_id)
        connection.execute("INSERT INTO inventory VALUES ('SKU-1', 5, 0)")
        dry = _dlq(own, "redrive", "--order", order_id, "--json")
        assert (dry["dryRun"], dry["count"], dry["skipped"]["alreadyRedriven"]) == (True, 1, 1)
        done = _dlq(own, "redrive", "--order", order_id, "--count", "1", "--note", "restored", "--json")
        assert (done["job"]["state"], done["job"]["done"]) == ("done", 1)
        wait_until(lambda: row(connection, "SELECT status FROM orders") == ("CONFIRMED",), 30, "the order settles")
    listed = _dlq(own, "jobs")
    assert listed.count("redrive done: 1 of 1 done") == 2
    assert "restored" in listed
