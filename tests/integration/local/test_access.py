"""The local Valkey and Kafka require the password on every listener."""

import itertools
import socket
import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from confluent_kafka import KafkaError, Producer

from orderstream.kafka.publication import Publication
from orderstream.kafka.publisher import Publisher
from orderstream.kafka.topics import ensure_topics
from orderstream.local.processes import ports
from orderstream.local.processes.state import shared_cache
from orderstream.local.servers.kafka import Kafka
from orderstream.local.servers.valkey import Valkey
from orderstream.settings import Settings
from tests.integration.local.conftest import LocalServers

FETCH, METADATA, DESCRIBE_QUORUM = 1, 3, 55


def test_valkey_requires_its_password(local_servers: LocalServers) -> None:
    valkey = Valkey(ports.pick(["valkey"], {})["valkey"], local_servers.home, local_servers.passwords.valkey)
    child = local_servers.start(valkey)
    with redis.Redis.from_url(valkey.url) as client:
        client.set("a", "b")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
        assert client.config_get("save") == {"save": ""}
    for url in (
        f"redis://{valkey.url.rpartition('@')[2]}",
        valkey.url.replace(local_servers.passwords.valkey, "guess"),
    ):
        with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.get("a")
    assert local_servers.passwords.valkey not in Path(f"/proc/{child.pid}/cmdline").read_text()


def test_kafka_answers_nothing_without_its_password(local_servers: LocalServers) -> None:
    chosen = ports.pick(["broker", "controller"], {})
    kafka = Kafka(chosen["broker"], chosen["controller"], local_servers.home, shared_cache(), local_servers.passwords)
    local_servers.start(kafka)
    settings = Settings.model_validate({"kafka_brokers": kafka.brokers, "kafka_options": kafka.options})
    ensure_topics(settings)
    Publisher(settings, "test").publish([Publication("order.created.v1", "key", b"value", [])])
    for options in ({}, {**kafka.options, "sasl.password": "guess"}, {**kafka.options, "sasl.username": "controller"}):
        client: Any = {"bootstrap.servers": kafka.brokers, "log_level": 0, "message.timeout.ms": 2_000, **options}
        errors: list[KafkaError | None] = []
        forger = Producer(client)
        forger.produce("payment.authorized.v1", b"forged", on_delivery=partial(note, errors))
        forger.flush(10)
        assert len(errors) == 1
        assert errors[0] is not None
    for port, api in itertools.product(chosen.values(), (FETCH, METADATA, DESCRIBE_QUORUM)):
        assert answer(port, api) == b""


def note(errors: list[KafkaError | None], error: KafkaError | None, _message: object) -> None:
    """Record a delivery report."""
    errors.append(error)


def answer(port: int, api: int) -> bytes:
    """Return the answer of a listener to a client without a password: nothing, because it closes the connection.

    The listener of the controller must close it too. A client that can write there can change topics or stop Kafka.
    """
    request = struct.pack(">hhihi", api, 0, 1, -1, 0)
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        connection.settimeout(10)
        return connection.recv(4_096)
