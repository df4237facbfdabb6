"""`orderstream up`: starts all servers and services, prints their addresses, restarts what dies, and stops in order."""

import contextlib
import os
from collections.abc import Callable, Iterator

from orderstream.local.banner import banner
from orderstream.local.operator_token import (
    OperatorTokenError,
    check_listens_safely,
    operator_token,
    token_of_running,
)
from orderstream.local.plan import Plan, given, plan
from orderstream.local.processes import ports, start_order
from orderstream.local.processes.child import ChildError, StoppingError
from orderstream.local.processes.logs import rotate
from orderstream.local.processes.pids import start_time, wait_until
from orderstream.local.processes.progress import Terminal
from orderstream.local.processes.registry import ProcessRegistry, end_leftovers
from orderstream.local.processes.service import Service
from orderstream.local.processes.signals import Stop
from orderstream.local.processes.start_order import CONSOLE, SCHEMA, START_AFTER, TOPICS, StartStep
from orderstream.local.processes.state import BusyError, Phase, Run, StateDir, StateRecord, checkout, shared_cache
from orderstream.local.processes.supervisor import GaveUpError, Supervisor
from orderstream.local.servers import kafka, server_home
from orderstream.local.servers.kafka_jars import FetchError
from orderstream.local.servers.passwords import read_or_make
from orderstream.local.servers.server_home import ServerHomeError
from orderstream.local.stack_settings import stack_addresses
from orderstream.settings import Settings

STARTED_SECONDS = 180.0


def up(settings: Settings, state: StateDir, terminal: Terminal, stop: Stop) -> int:
    """Start the local stack of `state`, or print the banner if it runs already. Returns the exit code."""
    try:
        with state.lock():
            return _run(settings, state, terminal, stop)
    except BusyError:
        return _show_running(settings, state, terminal, stop)


def _show_running(settings: Settings, state: StateDir, terminal: Terminal, stop: Stop) -> int:
    """Wait until the `up` that holds this state directory serves, and print its banner."""
    wait_until(lambda: stop.requested.is_set() or not state.locked() or _phase(state) == "up", STARTED_SECONDS)
    run = state.running()
    if run is None or run.phase != "up":
        terminal.say(f"Another `orderstream up` on {state.root} did not come up; see {state.logs}")
        return 1
    terminal.say(banner(run.urls, state, token_of_running(settings, state), settings.play_rate))
    return 0


def _phase(state: StateDir) -> Phase | None:
    run = state.read().run
    return run.phase if run else None


def _run(settings: Settings, state: StateDir, terminal: Terminal, stop: Stop) -> int:
    """Start, watch and stop the local stack. The caller holds the lock of `state`."""
    record = state.read()
    if record.run is not None and (ended := end_leftovers(record.run.children)):
        terminal.say(f"Ended what an earlier run left behind: {', '.join(ended)}")
    if problem := _problem_with_ports(settings) or _problem_with_path(settings, state, record):
        terminal.say(problem)
        return 1
    try:
        home = server_home.choose(state, terminal.say)
    except ServerHomeError as error:
        terminal.say(f"{error}")
        return 1
    try:
        token = operator_token(settings, state) if settings.replicas_console else None
    except OperatorTokenError as error:
        terminal.say(f"{error}")
        return 1
    planned = plan(settings, state, record.ports, home, read_or_make(state), operator_token=token)
    run = Run(os.getpid(), start_time(os.getpid()) or "", urls=dict(planned.urls))
    registry = ProcessRegistry(state, StateRecord({**record.ports, **planned.ports}, run))
    for log in state.logs.glob("*.log"):
        if log != state.log("up"):
            rotate(log)
    supervisor = Supervisor(state, registry, terminal, stop, settings.restarts_per_minute)
    with _stopped_afterwards(supervisor, registry, terminal):
        try:
            start_order.run(_steps(settings, planned, supervisor), terminal, stop.requested)
            terminal.clear()
            terminal.say(banner(planned.urls, state, token, settings.play_rate))
            # The phase changes last: a process that waits for it then finds the banner in our output.
            registry.update(_set_phase("up"))
            if planned.aot_cache is not None and not planned.aot_cache.exists:
                supervisor.in_background("kafka-aot-cache", planned.aot_cache.build)
            supervisor.watch()
        except StoppingError:
            pass
        except (ChildError, GaveUpError, FetchError, OSError) as error:
            terminal.clear()
            terminal.say(f"{error}\nLogs are in {state.logs}")
            return 1
    return 130 if stop.forced.is_set() else 0


def _problem_with_ports(settings: Settings) -> str | None:
    """Return why the API, its metrics or the console cannot listen on the port of its setting, or None."""
    wanted = [("the API", "PORT", settings.host, settings.port)]
    if settings.metrics_port:
        wanted.append(("the metrics", "METRICS_PORT", settings.host, settings.metrics_port))
    if settings.replicas_console:
        try:
            check_listens_safely(settings)
        except OperatorTokenError as error:
            return f"{error}"
        if "console_port" in settings.model_fields_set:
            wanted.append(("the console", "CONSOLE_PORT", settings.console_host, settings.console_port))
    if len({port for *_, port in wanted}) < len(wanted):
        return f"{', '.join(name for _, name, _, _ in wanted)} must be different."
    return next(filter(None, (_problem_with_port(*port) for port in wanted)), None)


def _problem_with_port(what: str, name: str, host: str, port: int) -> str | None:
    subject = what[0].upper() + what[1:]
    try:
        free = ports.is_free(host, port)
    except OSError as error:
        return f"{subject} cannot listen on {host} port {port}: {error.strerror}"
    if free:
        return None
    return (
        f"Port {port} is taken by {ports.holder(port)}.\n"
        f"Stop that process, or choose another port for {what}, for example: {name}={port + 1} make up"
    )


def _problem_with_path(settings: Settings, state: StateDir, record: StateRecord) -> str | None:
    """Return why Kafka cannot start from the directory of its files, or None."""
    if "kafka" in given(settings, record.ports):
        return None
    problem = kafka.problem_with(state.root, shared_cache())
    return problem and f"{problem}\nMove the checkout (or ORDERSTREAM_STATE), or set KAFKA_BROKERS to another Kafka."


@contextlib.contextmanager
def _stopped_afterwards(supervisor: Supervisor, registry: ProcessRegistry, terminal: Terminal) -> Iterator[None]:
    try:
        yield
    finally:
        terminal.clear()
        registry.update(_set_phase("stopping"))
        supervisor.stop_all()
        registry.update(lambda record: setattr(record, "run", None))
        terminal.say("Stopped. The state is kept for the next start.")


def _set_phase(phase: Phase) -> Callable[[StateRecord], None]:
    def change(record: StateRecord) -> None:
        if record.run is not None:
            record.run.phase = phase

    return change


def _steps(settings: Settings, planned: Plan, supervisor: Supervisor) -> list[StartStep]:
    def start(service: Service) -> StartStep:
        bring_up = supervisor.bring_up_optional if service.name == CONSOLE else supervisor.bring_up
        return StartStep(service.name, service.needs, lambda report: bring_up(service, report))

    with_role = any(server.name == "postgres" for server in planned.servers)
    addressed = settings.model_copy(update=stack_addresses(planned.urls))
    return [
        *map(start, planned.servers),
        StartStep(SCHEMA, START_AFTER[SCHEMA], lambda report: prepare_schema(addressed, report, with_role)),
        StartStep(TOPICS, START_AFTER[TOPICS], lambda report: prepare_topics(addressed, report)),
        *map(start, planned.services),
    ]


def prepare_schema(settings: Settings, report: Callable[[str], None], with_console_role: bool) -> None:
    """Migrate the database, and stock SKU-1 if there is no stock at all. Raises ChildError if the database refuses.

    `with_console_role`: also give the role `console` its rights. It exists in our own PostgreSQL only.
    """
    import psycopg  # noqa: PLC0415 - slow to load; the server starts in the meantime

    from orderstream.postgres.connect import connect  # noqa: PLC0415
    from orderstream.postgres.migrate import MigrationError, migrate  # noqa: PLC0415

    try:
        report("migrating")
        migrate(settings.postgres_url)
        with connect(settings.postgres_url, "up") as connection:
            if connection.execute("SELECT sku FROM inventory LIMIT 1").fetchone() is None:
                report("stocking SKU-1")
                connection.execute((checkout() / "db" / "init_inventory.sql").read_bytes(), prepare=False)
            if with_console_role:
                connection.execute((checkout() / "db" / "console_role.sql").read_bytes(), prepare=False)
    except (psycopg.Error, MigrationError) as error:
        raise ChildError(f"cannot prepare the database: {error}", []) from error


def prepare_topics(settings: Settings, report: Callable[[str], None]) -> None:
    """Create missing topics, and log a warning for settings that differ. Raises ChildError if Kafka refuses."""
    from confluent_kafka import KafkaException  # noqa: PLC0415 - slow to load; the broker starts in the meantime

    from orderstream.kafka.errors import KafkaRefusedError  # noqa: PLC0415
    from orderstream.kafka.topics import ensure_topics, topic_warnings  # noqa: PLC0415
    from orderstream.telemetry import logs  # noqa: PLC0415

    try:
        report("creating topics")
        ensure_topics(settings)
        for warning in topic_warnings(settings):
            logs.get().warning("topic_setting", warning=warning)
    except (KafkaException, KafkaRefusedError) as error:
        raise ChildError(f"cannot create the topics: {error}", []) from error
