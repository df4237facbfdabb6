"""The plan of a start: servers with a given URL are not started, and every service gets the addresses."""

import json
from typing import Any

import msgspec
import pytest

from orderstream.local import plan
from orderstream.local.processes import ports
from orderstream.local.processes.state import StateDir
from orderstream.local.servers.orderstream import OrderStreamService
from orderstream.local.servers.passwords import Passwords
from orderstream.settings import SERVICES, Settings, SettingsError
from orderstream.telemetry.ingest import exporter_headers


def given(**values: Any) -> Settings:
    """Return the settings of an environment that has only these variables."""
    return Settings(**values)


ADDRESSES = ("POSTGRES_URL", "REDIS_URL", "KAFKA_BROKERS", "KAFKA_OPTIONS")
KEPT = {"postgres": 20_101, "valkey": 20_102, "kafka": 20_103}


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (given(), set()),
        (given(postgres_url="postgresql://db.example/orders"), {"postgres"}),
        (given(redis_url="redis://127.0.0.1:6379/0", kafka_brokers="a:9092,b:9092"), {"valkey", "kafka"}),
        (given(postgres_url="postgresql://app@127.0.0.1:20101/orders"), set()),
        (given(postgres_url="postgresql://app@localhost:20101/orders"), set()),
        (given(postgres_url="host=127.0.0.1 port=5432"), {"postgres"}),
        (given(redis_url="redis://127.0.0.1:20102/0", kafka_brokers="127.0.0.1:20103"), set()),
        (given(redis_url="redis://cache.example:20102/0"), {"valkey"}),
    ],
)
def test_a_given_url_counts_unless_it_has_our_own_port(settings: Settings, found: set[str]) -> None:
    assert plan.given(settings, KEPT) == found


def test_a_plain_start_has_three_servers_five_services_and_the_console(state: StateDir) -> None:
    planned = plan.plan(given(), state, {})
    assert [server.name for server in planned.servers] == ["postgres", "valkey", "kafka"]
    assert [service.name for service in planned.services] == [*SERVICES, "console"]
    assert planned.urls["BASE_URL"] == "http://127.0.0.1:3000"
    assert planned.urls["KAFKA_BROKERS"] == f"127.0.0.1:{planned.ports['kafka']}"


def test_a_server_with_a_given_url_is_not_started(state: StateDir) -> None:
    planned = plan.plan(given(postgres_url="postgresql://db.example/orders"), state, {})
    assert [server.name for server in planned.servers] == ["valkey", "kafka"]
    assert planned.urls["POSTGRES_URL"] == "postgresql://db.example/orders"


def test_each_replica_has_its_own_name_and_health_page(state: StateDir) -> None:
    planned = plan.plan(given(replicas_payment_worker=3, replicas_order_service=0), state, {})
    workers = [service for service in planned.services if service.name.startswith("payment-worker")]
    assert [worker.name for worker in workers] == ["payment-worker", "payment-worker-2", "payment-worker-3"]
    assert len({worker.health_url for worker in workers if isinstance(worker, OrderStreamService)}) == 3
    assert not [service for service in planned.services if service.name == "order-service"]


def test_replicas_of_the_gateway_share_the_port_and_have_their_own_health_pages(state: StateDir) -> None:
    planned = plan.plan(given(replicas_api_gateway=2, port=3456), state, {})
    services = [service for service in planned.services if isinstance(service, OrderStreamService)]
    gateways = [service for service in services if service.service == "api-gateway"]
    assert [gateway.settings_env["PORT"] for gateway in gateways] == ["3456", "3456"]
    ports = [gateway.settings_env["METRICS_PORT"] for gateway in gateways]
    assert len(set(ports)) == 2
    assert [gateway.health_url for gateway in gateways] == [f"http://127.0.0.1:{port}/readyz" for port in ports]


def test_a_service_gets_all_addresses_in_its_environment(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYMENT_SUCCESS_RATE", "0.5")
    planned = plan.plan(given(port=3456), state, {})
    env = next(service for service in planned.services if service.name == "payment-worker").command().env
    assert {name: env[name] for name in (*ADDRESSES, "PORT", "LOG_FORMAT")} == {
        **{name: url for name, url in planned.urls.items() if name not in {"BASE_URL", "CONSOLE_URL"}},
        "PORT": "3456",
        "LOG_FORMAT": "json",
    }
    assert env["METRICS_PORT"] == str(planned.ports["payment-worker"])
    assert env["PAYMENT_SUCCESS_RATE"] == "0.5"


def test_the_password_of_our_own_kafka_replaces_that_of_the_shell(state: StateDir) -> None:
    shell = {"sasl.password": "of an earlier state", "client.rack": "a"}
    planned = plan.plan(given(kafka_options=shell), state, {}, passwords=Passwords(kafka="new"))
    options = json.loads(planned.urls["KAFKA_OPTIONS"])
    assert (options["sasl.password"], options["client.rack"]) == ("new", "a")
    elsewhere = plan.plan(given(kafka_options=shell, kafka_brokers="kafka.example:9092"), state, {})
    assert json.loads(elsewhere.urls["KAFKA_OPTIONS"]) == shell


def test_no_argument_of_any_process_holds_a_password(state: StateDir) -> None:
    passwords = Passwords()
    planned = plan.plan(given(), state, {}, passwords=passwords)
    arguments = " ".join(word for service in (*planned.servers, *planned.services) for word in service.command().argv)
    assert not [word for word in msgspec.structs.asdict(passwords).values() if word in arguments]


@pytest.mark.parametrize(
    ("host", "base_url"),
    [("0.0.0.0", "http://127.0.0.1:3000"), ("::1", "http://[::1]:3000"), ("10.0.0.7", "http://10.0.0.7:3000")],
)
def test_the_base_url_is_an_address_that_clients_can_reach(state: StateDir, host: str, base_url: str) -> None:
    assert plan.plan(given(host=host), state, {}).urls["BASE_URL"] == base_url


def environment(planned: plan.Plan, name: str) -> dict[str, str]:
    """Return the environment of one service of the plan."""
    return dict(next(service for service in planned.services if service.name == name).command().env)


def test_with_the_simulator_the_payment_worker_gets_its_address(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAYMENT_PROVIDER", "simulator")
    planned = plan.plan(given(payment_provider="simulator"), state, {})
    url = f"http://127.0.0.1:{planned.ports['payment-simulator']}"
    assert planned.urls["PAYMENT_SIMULATOR_URL"] == url
    assert environment(planned, "payment-simulator")["SIMULATOR_PORT"] == url.rpartition(":")[2]
    worker = environment(planned, "payment-worker")
    assert (worker["PAYMENT_PROVIDER"], worker["PAYMENT_PROVIDER_URL"]) == ("http", url)
    assert "PAYMENT_PROVIDER_URL" not in environment(planned, "order-service")
    assert "payment-simulator" in next(s for s in planned.services if s.name == "payment-worker").needs


def test_the_simulator_calls_the_webhook_of_the_first_payment_worker(state: StateDir) -> None:
    settings = given(payment_provider="simulator", replicas_payment_worker=2, simulator_faults='{"latencyMs": 3}')
    planned = plan.plan(settings, state, {})
    port = str(planned.ports["payment-webhook"])
    faults = json.loads(environment(planned, "payment-simulator")["SIMULATOR_FAULTS"])
    assert (faults["latencyMs"], faults["webhookUrl"]) == (3, f"http://127.0.0.1:{port}/webhooks/payments")
    workers = [environment(planned, name)["PAYMENT_WEBHOOK_PORT"] for name in ("payment-worker", "payment-worker-2")]
    assert workers == [port, ""]


def test_a_given_webhook_of_the_simulator_stays(state: StateDir) -> None:
    url = "http://127.0.0.1:9/mine"
    faults = json.dumps({"webhookUrl": url})
    planned = plan.plan(given(payment_provider="simulator", simulator_faults=faults), state, {})
    assert json.loads(environment(planned, "payment-simulator")["SIMULATOR_FAULTS"])["webhookUrl"] == url


def test_the_simulator_stops_after_the_workers(state: StateDir) -> None:
    planned = plan.plan(given(payment_provider="simulator"), state, {})
    stops = {service.name: service.command().stop_order for service in planned.services}
    assert stops["payment-simulator"] > stops["payment-worker"]


def test_the_simulator_uses_a_given_port(state: StateDir) -> None:
    planned = plan.plan(given(payment_provider="simulator", simulator_port=3456), state, {})
    assert planned.urls["PAYMENT_SIMULATOR_URL"] == "http://127.0.0.1:3456"


def test_without_the_simulator_no_service_is_added(state: StateDir) -> None:
    settings = given(payment_provider="http", payment_provider_url="https://payments.example")
    planned = plan.plan(settings, state, {})
    assert [service.name for service in planned.services] == [*SERVICES, "console"]
    assert "PAYMENT_SIMULATOR_URL" not in planned.urls


def test_wrong_faults_of_the_simulator_are_named_before_anything_starts(state: StateDir) -> None:
    with pytest.raises(SettingsError) as caught:
        plan.plan(given(payment_provider="simulator", simulator_faults='{"hangRate": 2, "slow": 1}'), state, {})
    assert [problem.partition(": ")[2].partition(":")[0] for problem in caught.value.problems] == ["hangRate", "slow"]


def test_the_console_gets_its_own_account_and_the_address_of_the_api(state: StateDir) -> None:
    passwords = Passwords()
    planned = plan.plan(given(port=3456), state, {"console": 20_104}, passwords=passwords)
    env = environment(planned, "console")
    own = f"postgresql://console:{passwords.postgres_console}@127.0.0.1:{planned.ports['postgres']}/orders"
    assert (env["CONSOLE_POSTGRES_URL"], env["POSTGRES_URL"]) == (own, planned.urls["POSTGRES_URL"])
    assert (env["BASE_URL"], env["CONSOLE_PORT"]) == ("http://127.0.0.1:3456", "20104")
    assert planned.urls["CONSOLE_URL"] == "http://127.0.0.1:20104"
    assert not [url for url in planned.urls.values() if passwords.postgres_console in url]
    for service in SERVICES:
        assert passwords.postgres_console not in environment(planned, service).values()


def test_the_console_uses_a_given_account(state: StateDir) -> None:
    url = "postgresql://reader@db.example/orders"
    theirs = plan.plan(given(postgres_url="postgresql://db.example/orders"), state, {})
    assert "CONSOLE_POSTGRES_URL" not in environment(theirs, "console")
    ours = plan.plan(given(console_postgres_url=url), state, {})
    assert environment(ours, "console").get("CONSOLE_POSTGRES_URL") != ours.urls["POSTGRES_URL"]


def test_the_settings_of_the_console_go_to_no_other_process(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSOLE_TOKEN", "a-secret-token-of-a-test")
    planned = plan.plan(given(payment_provider="simulator"), state, {})
    holders = [service.name for service in planned.services if "CONSOLE_TOKEN" in environment(planned, service.name)]
    assert holders == ["console"]


def test_without_a_console_there_is_neither_process_nor_address(state: StateDir) -> None:
    planned = plan.plan(given(replicas_console=0), state, {})
    assert [service.name for service in planned.services] == list(SERVICES)
    assert "CONSOLE_URL" not in planned.urls
    assert "console" not in planned.ports


def test_the_console_takes_3100_if_it_is_free_and_keeps_the_port_that_it_got(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {3100}
    monkeypatch.setattr(ports, "is_free", lambda _host, port: port in free or port >= 20_000)
    assert plan.plan(given(), state, {}).ports["console"] == 3100
    free.clear()
    picked = plan.plan(given(), state, {}).ports["console"]
    assert picked >= 20_000
    free.add(3100)
    assert plan.plan(given(), state, {"console": picked}).ports["console"] == picked
    assert plan.plan(given(console_port=3100), state, {"console": picked}).ports["console"] == 3100
    assert plan.plan(given(port=3100), state, {}).ports["console"] >= 20_000


@pytest.mark.parametrize(
    ("settings", "on"),
    [
        ({}, "on"),
        ({"metrics_port": 20_105}, "off"),
        ({"metrics_port": 20_105, "gateway_metrics": "on"}, None),
        ({"gateway_metrics": "off"}, None),
    ],
)
def test_a_given_metrics_port_is_that_of_the_first_gateway(
    state: StateDir, settings: dict[str, Any], on: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GATEWAY_METRICS", raising=False)
    planned = plan.plan(given(replicas_api_gateway=2, **settings), state, {})
    gateways = [environment(planned, name) for name in ("api-gateway", "api-gateway-2")]
    assert [gateway.get("GATEWAY_METRICS") for gateway in gateways] == [on, on]
    assert "metrics_port" not in settings or gateways[0]["METRICS_PORT"] == "20105"
    assert gateways[0]["METRICS_PORT"] != gateways[1]["METRICS_PORT"]
    assert "GATEWAY_METRICS" not in environment(planned, "order-service")


TOKEN = "the-token-of-the-operator"


def test_without_a_collector_the_services_send_their_spans_to_the_console(state: StateDir) -> None:
    planned = plan.plan(given(payment_provider="simulator"), state, {}, operator_token=TOKEN)
    for name in (*SERVICES, "payment-simulator"):
        sent = environment(planned, name)
        assert sent["OTEL_EXPORTER_OTLP_ENDPOINT"] == planned.urls["CONSOLE_URL"]
        assert sent["OTEL_EXPORTER_OTLP_HEADERS"] == exporter_headers(TOKEN)
        assert sent["TRACE_SAMPLES_PER_SECOND"] == str(plan.CONSOLE_SAMPLES_PER_SECOND)
        assert TOKEN not in str(sent)


@pytest.mark.parametrize(
    ("settings", "token"),
    [
        (given(otel_exporter_otlp_endpoint="http://jaeger.example:4318"), TOKEN),
        (given(replicas_console=0), None),
        (given(), None),
    ],
)
def test_spans_go_to_a_given_collector_or_nowhere_without_the_console(
    state: StateDir, settings: Settings, token: str | None
) -> None:
    planned = plan.plan(settings, state, {}, operator_token=token)
    assert not {"OTEL_EXPORTER_OTLP_HEADERS", "TRACE_SAMPLES_PER_SECOND"} & environment(planned, "api-gateway").keys()


def test_a_given_number_of_samples_is_kept(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACE_SAMPLES_PER_SECOND", "3")
    planned = plan.plan(given(trace_samples_per_second=3), state, {}, operator_token=TOKEN)
    assert environment(planned, "api-gateway")["TRACE_SAMPLES_PER_SECOND"] == "3"
