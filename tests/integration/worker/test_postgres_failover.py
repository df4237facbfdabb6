"""A worker and the relay during a failover: they leave a server that refuses writes or hangs (P5)."""

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest

from orderstream.domain.events import topic_of
from orderstream.kafka.envelope import Received
from orderstream.kafka.topics import dead_letter_topic
from orderstream.postgres.connect import Connection
from orderstream.postgres.limited import LimitedConnection
from orderstream.postgres.outbox import OutboxRow, append
from orderstream.settings import Settings
from orderstream.worker import runner
from tests.integration.decisions.orders import created
from tests.integration.outbox_relay.running import running as relay_running
from tests.integration.postgres.test_session import read_only
from tests.integration.worker.conftest import authorized
from tests.integration.worker.recorder import OUT, Recorder
from tests.integration.worker.running import Running, running
from tests.support.topics import Tap, publish_events
from tests.support.waiting import wait_until

CREATED = topic_of("order.created")
SERVICE = "outbox-relay"


def _end_sessions(connection: Connection, name: str) -> None:
    connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = %s AND datname = current_database()",
        (name,),
    )


def _sessions(connection: Connection, name: str) -> list[int]:
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()", (name,)
    )
    return [pid for (pid,) in rows.fetchall()]


def _append(connection: Connection) -> str:
    event = created(str(uuid4()))
    with connection.transaction():
        append(connection, [OutboxRow(event)])
    return event.correlation_id


def test_a_worker_continues_after_a_failover(settings: Settings, connection: Connection, group: str) -> None:
    with (
        Tap(settings.kafka_brokers, [OUT, dead_letter_topic(group)]) as tap,
        running(Recorder(group), settings) as loop,
    ):
        with read_only(settings.postgres_url):
            _end_sessions(connection, group)
            publish_events(settings.kafka_brokers, authorized(5))
            wait_until(lambda: not loop.runner.ready, 20, "it is not ready while no server accepts writes")
        assert {letter.topic for letter in tap.count(5)} == {OUT}
        assert loop.runner.ready


def test_the_relay_continues_after_a_failover(settings: Settings, connection: Connection) -> None:
    with Tap(settings.kafka_brokers, [CREATED]) as tap, relay_running(settings):
        with read_only(settings.postgres_url):
            _end_sessions(connection, SERVICE)
            order_id = _append(connection)
            wait_until(lambda: not _sessions(connection, SERVICE), 20, "it keeps no read-only session")
        assert tap.count(1)[0].key == order_id.encode()


def test_the_relay_replaces_a_session_that_hangs(
    settings: Settings, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedConnection, "answer_limit_seconds", 1.0)
    with Tap(settings.kafka_brokers, [CREATED]) as tap, relay_running(settings):
        (hanging,) = wait_until(lambda: _sessions(connection, SERVICE), 10, "the relay has a session")
        os.kill(hanging, signal.SIGSTOP)
        try:
            wait_until(lambda: len(_sessions(connection, SERVICE)) == 2, 20, "it has a new session")
            order_id = _append(connection)
            assert tap.count(1)[0].key == order_id.encode()
        finally:
            os.kill(hanging, signal.SIGCONT)


def test_a_worker_replaces_a_session_that_hangs(
    settings: Settings, connection: Connection, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LimitedConnection, "answer_limit_seconds", 1.0)
    hanging: list[int] = []

    def fault(tx: Connection, _batch: Sequence[Received]) -> None:
        if not hanging:
            hanging.append(tx.info.backend_pid)
            os.kill(hanging[0], signal.SIGSTOP)

    try:
        with Tap(settings.kafka_brokers, [OUT]) as tap, running(Recorder(group, fault), settings):
            publish_events(settings.kafka_brokers, authorized(5))
            tap.until(lambda seen: len({letter.key for letter in seen}) == 5, 30, "all events are published")
    finally:
        os.kill(hanging[0], signal.SIGCONT)


@pytest.mark.parametrize("state", ["25006", "26000", "42P05", "08P01", "25P02", "22021"])
def test_an_error_of_the_session_is_no_dead_letter(settings: Settings, group: str, state: str) -> None:
    sessions: list[int] = []

    def fault(tx: Connection, _batch: Sequence[Received]) -> None:
        sessions.append(tx.info.backend_pid)
        if len(sessions) < 3:
            tx.execute(f"DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$".encode(), prepare=False)

    publish_events(settings.kafka_brokers, authorized(5))
    with Tap(settings.kafka_brokers, [OUT, dead_letter_topic(group)]) as tap, running(Recorder(group, fault), settings):
        letters = tap.until(lambda seen: len({letter.key for letter in seen}) == 5, 20, "all events are published")
    assert {letter.topic for letter in letters} == {OUT}
    assert len(set(sessions)) >= 3, "each try has a session of its own"


def test_an_unknown_error_is_retried_and_then_stops_the_worker(
    settings: Settings, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fault(tx: Connection, _batch: Sequence[Received]) -> None:
        tries.append(1)
        if len(tries) == 2:
            monkeypatch.setattr(runner, "RETRY_SECONDS", 0.0)
        tx.execute(b"DO $$ BEGIN RAISE SQLSTATE 'ZZ123'; END $$", prepare=False)

    publish_events(settings.kafka_brokers, authorized(5))
    error = Running(Recorder(group, fault), settings).wait_end()
    assert isinstance(error, psycopg.Error)
    assert error.sqlstate == "ZZ123"
    assert len(tries) > 1


def test_readiness_does_not_flap_when_others_close_sessions(
    settings: Settings, connection: Connection, group: str
) -> None:
    seen: list[bool] = []
    over = threading.Event()
    with running(Recorder(group), settings) as loop, ThreadPoolExecutor(1) as pool:

        def watch() -> None:
            while not over.wait(0.001):
                seen.append(loop.runner.ready)

        watching = pool.submit(watch)
        for _ in range(3):
            before = wait_until(lambda: _sessions(connection, group), 10, "there is a session")
            _end_sessions(connection, group)
            with Tap(settings.kafka_brokers, [OUT]) as tap:
                publish_events(settings.kafka_brokers, authorized(1))
                tap.count(1)
            assert _sessions(connection, group) != before
        over.set()
        watching.result(10)
    assert seen
    assert all(seen)
