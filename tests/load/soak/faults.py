"""The faults of a soak, in their order. Each fault is one function."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import httpx
import psycopg
import redis
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource

from orderstream.domain.events import topic_of
from orderstream.kafka.client import MAX_MESSAGE_BYTES, admin
from orderstream.settings import SERVICES
from tests.support import faults
from tests.support.faults import signal_if_alive
from tests.support.system import System
from tests.support.waiting import wait_until

SESSION_SECONDS = 12
"""Longer than the session time-out of a consumer group."""
HANG_SECONDS = 5
BACKEND_HANG_SECONDS = 20
SNAPSHOT_SECONDS = 15
SMALL_RECORD_BYTES = 10_000
LARGE_ORDER_ITEMS = 300
LIMIT_SECONDS = 60
WORKERS = tuple(name for name in SERVICES if name != "api-gateway")
_WORKER_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = ANY(%(names)s)"
_POLL_SECONDS = 0.05


class Target:
    """The system under test, and the losses that the checks must allow for."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.settings = system.settings
        self.topics_lost = 0.0
        """Monotonic time of the last loss of records that Kafka had acknowledged."""
        self.redis_away: list[tuple[float, float]] = []
        """Monotonic times between which some processes could not use Redis."""
        self._pause = threading.Event()

    def wait(self, seconds: float) -> None:
        """Keep a fault for `seconds`."""
        self._pause.wait(seconds)

    @contextmanager
    def without_redis(self) -> Iterator[None]:
        """Record that Redis is away during the block, and until every process has noticed its return."""
        began = time.monotonic()
        yield
        self.redis_away.append((began, time.monotonic() + HANG_SECONDS))

    @property
    def postgres_url(self) -> str:
        """The URL of Postgres."""
        return self.system.urls["POSTGRES_URL"]

    @property
    def ledger_url(self) -> str:
        """The URL of the payment simulator, which has the ledger."""
        return self.system.urls["PAYMENT_SIMULATOR_URL"]

    def await_postgres(self, question: str) -> None:
        """Wait until Postgres answers a query with true. Raises TimeoutError."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.postgres_url) as connection:
                if connection.execute(question.encode()).fetchone() == (True,):
                    return
            self._pause.wait(_POLL_SECONDS)
        raise TimeoutError(f"Postgres does not answer {question!r} with true within {LIMIT_SECONDS} s")

    def limit_records(self, topic_name: str, limit_bytes: int) -> None:
        """Set the largest record that a topic accepts, and wait for the change. Raises KafkaException, TimeoutError."""
        entry = ConfigEntry("max.message.bytes", str(limit_bytes), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic_name, incremental_configs=[entry])
        client = admin(self.settings, "soak")
        (changed,) = client.incremental_alter_configs([resource]).values()
        changed.result(LIMIT_SECONDS)
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            (described,) = client.describe_configs([resource]).values()
            if described.result(LIMIT_SECONDS)["max.message.bytes"].value == str(limit_bytes):
                return
            self._pause.wait(_POLL_SECONDS)
        raise TimeoutError(f"{topic_name} does not accept {limit_bytes} bytes within {LIMIT_SECONDS} s")

    def place_large_order(self) -> None:
        """Place an order whose event is larger than SMALL_RECORD_BYTES. Raises TimeoutError if it is not accepted.

        It has an idempotency key, so that the request can be repeated until it is answered.
        """
        items = [{"sku": f"SOAK-LARGE-{number}", "qty": 1, "price": 1} for number in range(LARGE_ORDER_ITEMS)]
        order = {"userId": "soak", "items": items, "amount": 1, "currency": "USD"}
        headers = {"Idempotency-Key": f"large-{time.time_ns()}"}
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(f"{self.system.base_url}/orders", json=order, headers=headers)
                if answer.status_code == httpx.codes.CREATED:
                    return
            self._pause.wait(_POLL_SECONDS)
        raise TimeoutError(f"the large order was not accepted within {LIMIT_SECONDS} s")


def kill(*names: str) -> Callable[[Target], None]:
    """Return a fault that kills these processes at the same time."""

    def kill_all(target: Target) -> None:
        target.system.await_restart(*names)
        faults.kill(target.system, *names)

    return kill_all


def hang(name: str, seconds: float) -> Callable[[Target], None]:
    """Return a fault that pauses a process for `seconds`."""

    def pause(target: Target) -> None:
        target.system.await_restart(name)
        with faults.paused(target.system, name):
            target.wait(seconds)

    return pause


def stop_every_service(target: Target) -> None:
    """Stop every process of the five services. Each finishes its work."""
    faults.stop_services(target.system)


def kill_every_service(target: Target) -> None:
    """Kill every process of the five services at the same time."""
    faults.kill_services(target.system)


def restart_postgres(target: Target) -> None:
    """Stop Postgres in good order. The supervisor restarts it."""
    target.system.await_restart("postgres")
    faults.restart_postgres(target.system)


def fail_over_postgres(target: Target) -> None:
    """Restart Postgres as a standby, which serves reads and refuses writes, and promote it later."""
    target.system.await_restart("postgres")
    data = target.system.postgres_data
    (data / "standby.signal").touch()
    faults.restart_postgres(target.system)
    target.await_postgres("SELECT pg_is_in_recovery()")
    target.wait(HANG_SECONDS)
    (data / "promote").touch()
    target.system.await_restart("postgres")
    os.kill(target.system.pid("postgres"), signal.SIGUSR1)
    target.await_postgres("SELECT NOT pg_is_in_recovery()")


def hang_backends(target: Target) -> None:
    """Pause Postgres' processes for the workers and relays, for longer than a service waits for a statement."""
    with psycopg.connect(target.postgres_url, autocommit=True) as connection:
        rows = connection.execute(_WORKER_BACKENDS, {"names": list(WORKERS)}).fetchall()
    pids = [pid for (pid,) in rows]
    for pid in pids:
        signal_if_alive(pid, signal.SIGSTOP)
    target.wait(BACKEND_HANG_SECONDS)
    for pid in pids:
        signal_if_alive(pid, signal.SIGCONT)


def hold_snapshot(target: Target) -> None:
    """Hold a snapshot, so that Postgres cannot remove dead rows meanwhile."""
    with psycopg.connect(target.postgres_url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT FROM orders LIMIT 1")
        target.wait(SNAPSHOT_SECONDS)


def refuse_writes_in_valkey(target: Target) -> None:
    """Make Valkey refuse writes and serve reads, as it does when its memory is full."""
    client = redis.Redis.from_url(target.system.urls["REDIS_URL"])
    before = {name: str(client.config_get(name)[name]) for name in ("maxmemory", "maxmemory-policy")}
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    target.wait(HANG_SECONDS)
    for name, value in before.items():
        client.config_set(name, value)
    client.close()


def refuse_a_record(target: Target) -> None:
    """Make Kafka refuse the event of a large order, allow it again later, and redrive the refused records."""
    target.limit_records(topic_of("order.created"), SMALL_RECORD_BYTES)
    target.place_large_order()
    target.wait(HANG_SECONDS)
    target.limit_records(topic_of("order.created"), MAX_MESSAGE_BYTES)
    target.system.command("refused", "redrive")


def kill_valkey(target: Target) -> None:
    """Kill Valkey: the whole cache is lost."""
    target.system.await_restart("valkey")
    before = target.system.pid("valkey")
    with target.without_redis():
        faults.kill(target.system, "valkey")
        wait_until(lambda: target.system.is_back("valkey", before), LIMIT_SECONDS, "Valkey is restarted")


def hang_valkey(target: Target) -> None:
    """Pause Valkey: the cache stays, and no service can change it meanwhile."""
    with target.without_redis():
        hang("valkey", HANG_SECONDS)(target)


def delete_topics(target: Target) -> None:
    """Delete every topic of events. Raises KafkaException."""
    faults.delete_topics(target.system, may_be_missing=True)
    target.topics_lost = time.monotonic()


def wipe_kafka(target: Target) -> None:
    """Delete all data of Kafka and kill it."""
    target.system.await_restart("kafka")
    faults.wipe_kafka(target.system)
    target.topics_lost = time.monotonic()


ALL: Mapping[str, Callable[[Target], None]] = {
    "kill -9 payment-worker": kill("payment-worker"),
    "kill -9 Kafka": kill("kafka"),
    "kill -9 inventory-worker": kill("inventory-worker"),
    "Kafka's data directory emptied": wipe_kafka,
    "kill -9 order-service": kill("order-service"),
    "kill -9 Valkey": kill_valkey,
    "kill -9 Postgres": kill("postgres"),
    "kill -9 api-gateway": kill("api-gateway"),
    "topics deleted": delete_topics,
    "kill -9 outbox-relay": kill("outbox-relay"),
    "payment-worker stopped beyond its session": hang("payment-worker", SESSION_SECONDS),
    "Valkey hangs": hang_valkey,
    "Kafka hangs": hang("kafka", HANG_SECONDS),
    "Postgres restarted": restart_postgres,
    "order-service stopped beyond its session": hang("order-service", SESSION_SECONDS),
    "Postgres becomes read-only, then is promoted": fail_over_postgres,
    "Valkey refuses writes": refuse_writes_in_valkey,
    "the backends of the workers hang": hang_backends,
    "a snapshot is held": hold_snapshot,
    "Kafka refuses a record": refuse_a_record,
    "Postgres hangs": hang("postgres", HANG_SECONDS),
    "SIGTERM to every service": stop_every_service,
    "kill -9 one of every service at once": kill(*SERVICES),
    "kill -9 every service at once": kill_every_service,
}
"""Every fault in its order. Faults that lose records come early, so that the checks cover many later orders."""
