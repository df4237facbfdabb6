"""What a soak does to the system: each fault is one function; a supervisor starts again what dies of it."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import psycopg
import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource

from orderstream.domain.events import TOPICS, topic_of
from orderstream.kafka.client import MAX_MESSAGE_BYTES, admin
from orderstream.local.processes.pids import signal_tree, start_time
from orderstream.local.servers import server_home
from orderstream.settings import SERVICES, Settings
from tests.load.bench.system import System

SESSION_SECONDS = 12
"""Longer than a consumer may be silent before its group goes on without it."""
HANG_SECONDS = 5
BACKEND_HANG_SECONDS = 20
SNAPSHOT_SECONDS = 15
SMALL_RECORD_BYTES = 10_000
LARGE_ORDER_ITEMS = 300
BACK_SECONDS = 60
WORKERS = tuple(name for name in SERVICES if name != "api-gateway")
_WORKER_BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = ANY(%(names)s)"
_POLL_SECONDS = 0.05


class Target:
    """The system, by the names of its processes; remembers what the books must know of what was done to it."""

    def __init__(self, system: System, settings: Settings) -> None:
        self.settings = settings
        self._system = system
        self._pause = threading.Event()
        self.topics_lost = 0.0
        """Monotonic time at which Kafka had last lost records that it had acknowledged."""
        self.redis_away: list[tuple[float, float]] = []
        """Monotonic times between which Redis could not be asked by everyone."""

    def pid(self, name: str) -> int:
        """Return the pid of a process, as soon as it lives. Raises TimeoutError when it does not come back."""
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline:
            for child in self._system.children():
                if child.name == name and start_time(child.pid) == child.start_time:
                    return child.pid
            self._pause.wait(_POLL_SECONDS)
        raise TimeoutError(f"{name} is not started again within {BACK_SECONDS} s")

    def services(self) -> list[int]:
        """Return the pids of all processes of the five services that live."""
        children = self._system.children()
        return [one.pid for one in children if one.name.startswith(SERVICES) and start_time(one.pid) == one.start_time]

    def signal(self, name: str, number: signal.Signals) -> int:
        """Signal a process and all that it has started; returns its pid."""
        pid = self.pid(name)
        signal_tree(pid, number)
        return pid

    def wait(self, seconds: float) -> None:
        """Let a fault last."""
        self._pause.wait(seconds)

    @contextmanager
    def without_redis(self) -> Iterator[None]:
        """Note that Redis is away during the block, and until everyone has noticed that it is back."""
        began = time.monotonic()
        yield
        self.redis_away.append((began, time.monotonic() + HANG_SECONDS))

    @property
    def postgres_url(self) -> str:
        """Where Postgres is."""
        return self._system.urls["POSTGRES_URL"]

    @property
    def redis_url(self) -> str:
        """Where Valkey is."""
        return self._system.urls["REDIS_URL"]

    @property
    def postgres_data(self) -> Path:
        """The directory of Postgres' data."""
        return server_home.of(self._system.state).postgres_data

    def await_postgres(self, question: str) -> None:
        """Wait until Postgres answers a question with true. Raises TimeoutError."""
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.postgres_url) as connection:
                if connection.execute(question.encode()).fetchone() == (True,):
                    return
            self._pause.wait(_POLL_SECONDS)
        raise TimeoutError(f"Postgres does not answer {question!r} with true within {BACK_SECONDS} s")

    def limit_records(self, topic_name: str, limit_bytes: int) -> None:
        """Set the largest record that a topic takes, and wait until it is so. Raises KafkaException, TimeoutError."""
        entry = ConfigEntry("max.message.bytes", str(limit_bytes), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic_name, incremental_configs=[entry])
        client = admin(self.settings, "soak")
        (changed,) = client.incremental_alter_configs([resource]).values()
        changed.result(BACK_SECONDS)
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline:
            (described,) = client.describe_configs([resource]).values()
            if described.result(BACK_SECONDS)["max.message.bytes"].value == str(limit_bytes):
                return
            self._pause.wait(_POLL_SECONDS)
        raise TimeoutError(f"{topic_name} does not take {limit_bytes} bytes within {BACK_SECONDS} s")

    def place_large_order(self) -> None:
        """Place an order whose event is larger than SMALL_RECORD_BYTES. Raises TimeoutError if it is not accepted.

        It has an idempotency key, so that it can be sent until it is answered.
        """
        items = [{"sku": f"SOAK-LARGE-{number}", "qty": 1, "price": 1} for number in range(LARGE_ORDER_ITEMS)]
        order = {"userId": "soak", "items": items, "amount": 1, "currency": "USD"}
        headers = {"Idempotency-Key": f"large-{time.time_ns()}"}
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(f"{self._system.urls['BASE_URL']}/orders", json=order, headers=headers)
                if answer.status_code == httpx.codes.CREATED:
                    return
            self._pause.wait(_POLL_SECONDS)
        raise TimeoutError(f"the large order was not accepted within {BACK_SECONDS} s")

    def redrive_refused(self) -> None:
        """Publish the refused records again."""
        self._system.command("refused", "redrive")

    @property
    def kafka_data(self) -> Path:
        """The directory of Kafka's data."""
        return server_home.of(self._system.state).folder("kafka") / "data"


def kill(*names: str) -> Callable[[Target], None]:
    """`kill -9`, all of them at once."""

    def harm(target: Target) -> None:
        for pid in [target.pid(name) for name in names]:
            signal_tree(pid, signal.SIGKILL)

    return harm


def hang(name: str, seconds: float) -> Callable[[Target], None]:
    """SIGSTOP and, so much later, SIGCONT."""

    def harm(target: Target) -> None:
        pid = target.signal(name, signal.SIGSTOP)
        target.wait(seconds)
        if psutil.pid_exists(pid):
            signal_tree(pid, signal.SIGCONT)

    return harm


def stop_every_service(target: Target) -> None:
    """SIGTERM to every process of the five services: each drains, and is started again."""
    for pid in target.services():
        os.kill(pid, signal.SIGTERM)


def kill_every_service(target: Target) -> None:
    """`kill -9` of every process of the five services at once."""
    for pid in target.services():
        signal_tree(pid, signal.SIGKILL)


def restart_postgres(target: Target) -> None:
    """Stop it in good order, which ends every connection; it is started again."""
    os.kill(target.pid("postgres"), signal.SIGINT)


def fail_over_postgres(target: Target) -> None:
    """Restart Postgres as a standby, which serves reads and refuses writes, and promote it later."""
    data = target.postgres_data
    (data / "standby.signal").touch()
    os.kill(target.pid("postgres"), signal.SIGINT)
    target.await_postgres("SELECT pg_is_in_recovery()")
    target.wait(HANG_SECONDS)
    (data / "promote").touch()
    os.kill(target.pid("postgres"), signal.SIGUSR1)
    target.await_postgres("SELECT NOT pg_is_in_recovery()")


def hang_backends(target: Target) -> None:
    """Stop the server's processes for the workers and relays, for longer than these wait for a statement."""
    with psycopg.connect(target.postgres_url, autocommit=True) as connection:
        rows = connection.execute(_WORKER_BACKENDS, {"names": list(WORKERS)}).fetchall()
    pids = [pid for (pid,) in rows]
    for pid in pids:
        _signal_if_alive(pid, signal.SIGSTOP)
    target.wait(BACKEND_HANG_SECONDS)
    for pid in pids:
        _signal_if_alive(pid, signal.SIGCONT)


def hold_snapshot(target: Target) -> None:
    """Hold a snapshot, so that Postgres cannot remove dead rows meanwhile."""
    with psycopg.connect(target.postgres_url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT FROM orders LIMIT 1")
        target.wait(SNAPSHOT_SECONDS)


def refuse_writes_in_valkey(target: Target) -> None:
    """Have Valkey refuse writes and serve reads, as it does when its memory is full."""
    client = redis.Redis.from_url(target.redis_url)
    before = {name: str(client.config_get(name)[name]) for name in ("maxmemory", "maxmemory-policy")}
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    target.wait(HANG_SECONDS)
    for name, value in before.items():
        client.config_set(name, value)
    client.close()


def refuse_a_record(target: Target) -> None:
    """Have Kafka refuse the event of a large order, allow it again later, and redrive what was refused."""
    target.limit_records(topic_of("order.created"), SMALL_RECORD_BYTES)
    target.place_large_order()
    target.wait(HANG_SECONDS)
    target.limit_records(topic_of("order.created"), MAX_MESSAGE_BYTES)
    target.redrive_refused()


def _signal_if_alive(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_valkey(target: Target) -> None:
    """Everything cached is gone."""
    with target.without_redis():
        killed = target.signal("valkey", signal.SIGKILL)
        while target.pid("valkey") == killed:
            target.wait(_POLL_SECONDS)


def hang_valkey(target: Target) -> None:
    """Everything cached stays, and nothing of it can be changed meanwhile."""
    with target.without_redis():
        hang("valkey", HANG_SECONDS)(target)


def empty(directory: Path) -> None:
    """Remove all that is in it, at once for whoever looks: what was inside is moved away first."""
    lost = directory.with_name(f"lost-{time.monotonic_ns()}")
    lost.mkdir()
    for one in directory.iterdir():
        one.rename(lost / one.name)
    shutil.rmtree(lost)


def delete_topics(target: Target) -> None:
    """Delete every topic of events under the feet of its readers and writers. Raises KafkaException."""
    client = admin(target.settings, "soak")
    for future in client.delete_topics(list(TOPICS), operation_timeout=20).values():
        try:
            future.result(20)
        except KafkaException as error:
            if "UNKNOWN_TOPIC" not in str(error):
                raise
    target.topics_lost = time.monotonic()


def wipe_kafka(target: Target) -> None:
    """Empty Kafka's data directory and kill it: topics, offsets, groups and its own identity are gone."""
    empty(target.kafka_data)
    target.signal("kafka", signal.SIGKILL)
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
"""Every fault, in the order in which they come; what loses records comes early, so that much is left to be checked."""
