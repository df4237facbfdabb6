"""Plans one `up`: which servers and services it starts, and on which ports. It starts no server with a given URL."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from orderstream.local.processes import ports
from orderstream.local.processes.service import Service
from orderstream.local.processes.start_order import CONSOLE, PAYMENT_SIMULATOR, START_AFTER
from orderstream.local.processes.state import StateDir, shared_cache
from orderstream.local.servers import server_home
from orderstream.local.servers.kafka import Kafka
from orderstream.local.servers.kafka_aot_cache import KafkaAotCache
from orderstream.local.servers.orderstream import OrderStreamService
from orderstream.local.servers.passwords import Passwords
from orderstream.local.servers.postgres import Postgres
from orderstream.local.servers.server_home import ServerHome
from orderstream.local.servers.valkey import Valkey
from orderstream.payment_simulator.faults import initial_faults
from orderstream.settings import SERVICES, Settings
from orderstream.telemetry.ingest import exporter_headers

_WEBHOOK, _CONSOLE_PAGES = "payment-webhook", "console-pages"
CONSOLE_SAMPLES_PER_SECOND = 10
"""Traces that one gateway records per second, for each route, if the console keeps them."""
_NOT_FOR_SERVICES = {"BASE_URL", "CONSOLE_URL", "PAYMENT_SIMULATOR_URL"}
_GIVEN = {"postgres": "postgres_url", "valkey": "redis_url", "kafka": "kafka_brokers"}


@dataclass(frozen=True)
class Plan:
    """Everything to start, the ports that were picked, and the resulting addresses."""

    servers: tuple[Service, ...]
    services: tuple[Service, ...]
    aot_cache: KafkaAotCache | None
    ports: Mapping[str, int]
    urls: Mapping[str, str]


def given(settings: Settings, kept: Mapping[str, int]) -> set[str]:
    """Return the servers whose URL was given. A URL with our own port does not count: `orderstream env` prints it."""
    found = set()
    for server, field in _GIVEN.items():
        if field in settings.model_fields_set:
            value = str(getattr(settings, field))
            if (ports.LOOPBACK, kept.get(server)) not in _addresses(value):
                found.add(server)
    return found


def _addresses(url: str) -> set[tuple[str, int | None]]:
    """Return host and port of a URL, or of each of Kafka's brokers. `localhost` becomes the loopback address."""
    found = set()
    for address in url.split(","):
        try:
            parsed = urlsplit(address if "//" in address else f"//{address}")
            host = parsed.hostname or ""
            found.add((ports.LOOPBACK if host == "localhost" else host, parsed.port))
        except ValueError:
            continue
    return found


def plan(
    settings: Settings,
    state: StateDir,
    kept: Mapping[str, int],
    home: ServerHome | None = None,
    passwords: Passwords | None = None,
    *,
    operator_token: str | None = None,
) -> Plan:
    """Decide what to start, and pick free ports.

    With the operator's token, the services send their spans to the console, unless a collector is given.
    Raises OSError if there are none, and SettingsError if the faults of the payment simulator are wrong.
    """
    home, passwords = home or server_home.of(state), passwords or Passwords()
    replicas = [(service, _replica(service, n)) for service in SERVICES for n in range(settings.replicas(service))]
    names = ["postgres", "valkey", "kafka", "kafka-controller", *(name for _, name in replicas)]
    with_simulator = settings.payment_provider == "simulator"
    if with_simulator and "simulator_port" not in settings.model_fields_set:
        names.append(PAYMENT_SIMULATOR)
    if with_simulator and settings.payment_webhook_port is None:
        names.append(_WEBHOOK)
    if settings.replicas_console:
        names += [CONSOLE, _CONSOLE_PAGES]
    chosen = ports.pick(names, _wanted(settings, kept), avoid=(settings.port,))
    postgres = Postgres(chosen["postgres"], home, passwords)
    valkey = Valkey(chosen["valkey"], home, passwords.valkey)
    kafka = Kafka(chosen["kafka"], chosen["kafka-controller"], home, shared_cache(), passwords)
    from_outside = given(settings, kept)
    urls = {
        "POSTGRES_URL": settings.postgres_url if "postgres" in from_outside else postgres.url,
        "REDIS_URL": settings.redis_url if "valkey" in from_outside else valkey.url,
        "KAFKA_BROKERS": settings.kafka_brokers if "kafka" in from_outside else kafka.brokers,
        "BASE_URL": f"http://{_reachable(settings.host)}:{settings.port}",
    }
    # The shell may still have the password of an earlier state. The password of our own Kafka replaces it.
    options = settings.kafka_options if "kafka" in from_outside else {**settings.kafka_options, **kafka.options}
    if options:
        urls["KAFKA_OPTIONS"] = json.dumps(options)
    if settings.replicas_console:
        urls["CONSOLE_URL"] = f"http://{_reachable(settings.console_host)}:{chosen[CONSOLE]}"
    services = []
    spans = _spans_to_console(settings, urls, operator_token)
    if with_simulator:
        simulator = _simulator(settings, chosen, spans)
        services.append(simulator)
        urls["PAYMENT_SIMULATOR_URL"] = simulator.health_url.removesuffix("/readyz")
    services += [_service(settings, service, name, urls | spans, chosen) for service, name in replicas]
    if settings.replicas_console:
        own = None if "postgres" in from_outside else postgres.console_url
        services.append(_console(settings, urls, chosen, own))
    servers = [server for server in (postgres, valkey, kafka) if server.name not in from_outside]
    aot_cache = None if "kafka" in from_outside else KafkaAotCache(home, shared_cache())
    return Plan(tuple(servers), tuple(services), aot_cache, chosen, urls)


def _spans_to_console(settings: Settings, urls: Mapping[str, str], operator_token: str | None) -> dict[str, str]:
    """Return the variables with which a service sends its spans to the console. None if a collector is given.

    The console keeps fewer traces than a collector does, so that it gets fewer.
    """
    if settings.otel_exporter_otlp_endpoint is not None or operator_token is None or "CONSOLE_URL" not in urls:
        return {}
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": urls["CONSOLE_URL"],
        "OTEL_EXPORTER_OTLP_HEADERS": exporter_headers(operator_token),
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "",
    }
    if "trace_samples_per_second" not in settings.model_fields_set:
        variables["TRACE_SAMPLES_PER_SECOND"] = str(CONSOLE_SAMPLES_PER_SECOND)
    return variables


def _wanted(settings: Settings, kept: Mapping[str, int]) -> dict[str, int]:
    """Return the ports to take if they are free: those of the settings, the kept ports, and the console's default."""
    wanted = {CONSOLE: settings.console_port, **kept}
    if "console_port" in settings.model_fields_set:
        wanted[CONSOLE] = settings.console_port
    if settings.metrics_port:
        wanted["api-gateway"] = settings.metrics_port
    return wanted


def _replica(service: str, number: int) -> str:
    return service if number == 0 else f"{service}-{number + 1}"


def _service(
    settings: Settings, service: str, name: str, urls: Mapping[str, str], chosen: Mapping[str, int]
) -> OrderStreamService:
    settings_env = {key: value for key, value in urls.items() if key not in _NOT_FOR_SERVICES}
    simulator_url = urls.get("PAYMENT_SIMULATOR_URL")
    if service == "payment-worker" and simulator_url is not None:
        settings_env |= {"PAYMENT_PROVIDER": "http", "PAYMENT_PROVIDER_URL": simulator_url}
        # The first replica alone has the webhook. It brings the next call forward, and any replica makes that call.
        settings_env["PAYMENT_WEBHOOK_PORT"] = str(_webhook_port(settings, chosen)) if name == service else ""
    if service == "api-gateway" and settings.gateway_metrics == "auto":
        # Each process has a METRICS_PORT here. The one that you set decides about the port of the API.
        settings_env["GATEWAY_METRICS"] = "off" if settings.metrics_port else "on"
    return OrderStreamService(
        name=name,
        service=service,
        needs=START_AFTER[service],
        health_url=f"http://{_reachable(settings.host)}:{chosen[name]}/readyz",
        settings_env={**settings_env, "PORT": str(settings.port), "METRICS_PORT": str(chosen[name])},
        drain_seconds=settings.drain_timeout_seconds,
    )


def _webhook_port(settings: Settings, chosen: Mapping[str, int]) -> int:
    """Return the port on which payment-worker listens for the webhook of the simulator."""
    return settings.payment_webhook_port or chosen[_WEBHOOK]


def _simulator(settings: Settings, chosen: Mapping[str, int], spans: Mapping[str, str]) -> OrderStreamService:
    """Return the payment simulator, which serves its health pages on its own port. Raises SettingsError."""
    port, faults = chosen.get(PAYMENT_SIMULATOR, settings.simulator_port), initial_faults(settings)
    address = f"{_reachable(settings.host)}:{_webhook_port(settings, chosen)}"
    webhook_url = faults.webhook_url or f"http://{address}/webhooks/payments"
    with_webhook = msgspec.json.encode(msgspec.structs.replace(faults, webhook_url=webhook_url)).decode()
    return OrderStreamService(
        name=PAYMENT_SIMULATOR,
        service=PAYMENT_SIMULATOR,
        needs=START_AFTER[PAYMENT_SIMULATOR],
        health_url=f"http://{ports.LOOPBACK}:{port}/readyz",
        settings_env={"SIMULATOR_PORT": str(port), "SIMULATOR_FAULTS": with_webhook, **spans},
        drain_seconds=settings.drain_timeout_seconds,
    )


def _console(
    settings: Settings, urls: Mapping[str, str], chosen: Mapping[str, int], own_postgres_url: str | None
) -> OrderStreamService:
    """Return the console.

    `own_postgres_url` is the account of the console in our own Postgres. A setting replaces it.
    """
    addresses = {name: url for name, url in urls.items() if name not in {"CONSOLE_URL", "PAYMENT_SIMULATOR_URL"}}
    if own_postgres_url is not None and settings.console_postgres_url is None:
        addresses["CONSOLE_POSTGRES_URL"] = own_postgres_url
    return OrderStreamService(
        name=CONSOLE,
        service=CONSOLE,
        needs=START_AFTER[CONSOLE],
        health_url=f"http://{_reachable(settings.console_host)}:{chosen[_CONSOLE_PAGES]}/readyz",
        settings_env={
            **addresses,
            "PORT": str(settings.port),
            "CONSOLE_PORT": str(chosen[CONSOLE]),
            "METRICS_PORT": str(chosen[_CONSOLE_PAGES]),
        },
        drain_seconds=settings.drain_timeout_seconds,
    )


def _reachable(host: str) -> str:
    """Return the address at which clients reach a server that listens on `host`."""
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104 - compared, not listened on
        return ports.LOOPBACK
    return f"[{host}]" if ":" in host else host
