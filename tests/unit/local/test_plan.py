"""The plan of a start: what was given is not started, and where everything is."""

import json
from typing import Any

import msgspec
import pytest

from orderstream.local import plan
from orderstream.local.processes.state import StateDir
from orderstream.local.servers.orderstream import OrderStreamService
from orderstream.local.servers.passwords import Passwords
from orderstream.settings import SERVICES, Settings


def given(**values: Any) -> Settings:
    """The settings of an environment that has only these."""
    return Settings(**values)


LOCATIONS = ("POSTGRES_URL", "REDIS_URL", "KAFKA_BROKERS", "KAFKA_OPTIONS")
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
def test_a_given_url_counts_unless_it_is_our_own(settings: Settings, found: set[str]) -> None:
    assert plan.given(settings, KEPT) == found


def test_parts_and_services_of_a_plain_start(state: StateDir) -> None:
    made = plan.plan(given(), state, {})
    assert [server.name for server in made.servers] == ["postgres", "valkey", "kafka"]
    assert [service.name for service in made.services] == list(SERVICES)
    assert made.urls["BASE_URL"] == "http://127.0.0.1:3000"
    assert made.urls["KAFKA_BROKERS"] == f"127.0.0.1:{made.ports['kafka']}"


def test_a_given_part_is_used_and_not_started(state: StateDir) -> None:
    made = plan.plan(given(postgres_url="postgresql://db.example/orders"), state, {})
    assert [server.name for server in made.servers] == ["valkey", "kafka"]
    assert made.urls["POSTGRES_URL"] == "postgresql://db.example/orders"


def test_replicas_have_names_and_pages_of_their_own(state: StateDir) -> None:
    made = plan.plan(given(replicas_payment_worker=3, replicas_order_service=0), state, {})
    workers = [one for one in made.services if one.name.startswith("payment-worker")]
    assert [one.name for one in workers] == ["payment-worker", "payment-worker-2", "payment-worker-3"]
    assert len({one.health_url for one in workers if isinstance(one, OrderStreamService)}) == 3
    assert not [one for one in made.services if one.name == "order-service"]


def test_replicas_of_the_gateway_share_the_port_and_have_pages_of_their_own(state: StateDir) -> None:
    made = plan.plan(given(replicas_api_gateway=2, port=3456), state, {})
    gateways = [one for one in made.services if isinstance(one, OrderStreamService) and one.service == "api-gateway"]
    assert [one.settings_env["PORT"] for one in gateways] == ["3456", "3456"]
    ports = [one.settings_env["METRICS_PORT"] for one in gateways]
    assert len(set(ports)) == 2
    assert [one.health_url for one in gateways] == [f"http://127.0.0.1:{port}/readyz" for port in ports]


def test_a_service_is_told_where_everything_is(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYMENT_SUCCESS_RATE", "0.5")
    made = plan.plan(given(port=3456), state, {})
    env = next(one for one in made.services if one.name == "payment-worker").command().env
    assert {name: env[name] for name in (*LOCATIONS, "PORT", "LOG_FORMAT")} == {
        **{name: url for name, url in made.urls.items() if name != "BASE_URL"},
        "PORT": "3456",
        "LOG_FORMAT": "json",
    }
    assert env["METRICS_PORT"] == str(made.ports["payment-worker"])
    assert env["PAYMENT_SUCCESS_RATE"] == "0.5"


def test_the_password_of_our_own_kafka_goes_before_one_that_the_shell_has(state: StateDir) -> None:
    shell = {"sasl.password": "of an earlier state", "client.rack": "a"}
    made = plan.plan(given(kafka_options=shell), state, {}, passwords=Passwords(kafka="new"))
    options = json.loads(made.urls["KAFKA_OPTIONS"])
    assert (options["sasl.password"], options["client.rack"]) == ("new", "a")
    elsewhere = plan.plan(given(kafka_options=shell, kafka_brokers="kafka.example:9092"), state, {})
    assert json.loads(elsewhere.urls["KAFKA_OPTIONS"]) == shell


def test_no_argument_of_any_process_holds_a_password(state: StateDir) -> None:
    passwords = Passwords()
    made = plan.plan(given(), state, {}, passwords=passwords)
    arguments = " ".join(word for service in (*made.servers, *made.services) for word in service.command().argv)
    assert not [word for word in msgspec.structs.asdict(passwords).values() if word in arguments]


@pytest.mark.parametrize(
    ("host", "base_url"),
    [("0.0.0.0", "http://127.0.0.1:3000"), ("::1", "http://[::1]:3000"), ("10.0.0.7", "http://10.0.0.7:3000")],
)
def test_the_base_url_is_one_that_can_be_called(state: StateDir, host: str, base_url: str) -> None:
    assert plan.plan(given(host=host), state, {}).urls["BASE_URL"] == base_url
