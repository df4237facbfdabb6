"""The variables of docker-compose.yml configure a working broker. The program of Kafka's image reads them."""

import os
import subprocess
from pathlib import Path

import pytest

from orderstream.domain.events import TOPICS
from orderstream.domain.saga import CONSUMER_GROUPS
from orderstream.kafka.topics import dead_letter_topic, ensure_topics
from orderstream.local.processes import ports
from orderstream.settings import Settings
from tests.support.brokers import broker, java
from tests.support.compose import services

IMAGE_CLUSTER_ID = "5L6g3nShT-eMCtK--X86sw"
"""The CLUSTER_ID of the image."""


@pytest.fixture
def environment(kafka_brokers: str, tmp_path: Path) -> dict[str, str]:
    """The variables, with free ports and a directory of this test. `kafka_brokers` has fetched the jars."""
    chosen = ports.pick(["broker", "controller"], {})
    moved = {
        "localhost:9093": f"127.0.0.1:{chosen['controller']}",
        "kafka:9092": f"127.0.0.1:{chosen['broker']}",
        "//:9092": f"//127.0.0.1:{chosen['broker']}",
        "/var/lib/kafka/data": str(tmp_path / "data"),
    }
    variables: dict[str, str] = services()["kafka"]["environment"]
    for name, value in variables.items():
        for old, new in moved.items():
            value = value.replace(old, new)  # noqa: PLW2901
        variables[name] = value
    return variables


def test_a_broker_with_the_variables_of_docker_compose_accepts_our_topics(
    environment: dict[str, str], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    folders = ["--default-configs-dir", str(empty), "--mounted-configs-dir", str(empty)]
    setup = java("kafka.docker.KafkaDockerWrapper", "setup", *folders, "--final-configs-dir", str(tmp_path))
    variables = {"PATH": os.defpath, "CLUSTER_ID": IMAGE_CLUSTER_ID, **environment}
    done = subprocess.run(setup, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    brokers = environment["KAFKA_ADVERTISED_LISTENERS"].removeprefix("PLAINTEXT://")
    with broker(tmp_path / "server.properties", brokers, tmp_path / "broker.log"):
        created = ensure_topics(Settings.model_validate({"kafka_brokers": brokers}))
        assert set(created) == {*TOPICS, *map(dead_letter_topic, CONSUMER_GROUPS)}
