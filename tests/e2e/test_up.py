"""`orderstream up` with the real executable and the real servers: starts, stops, restarts, and what can go wrong."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from orderstream.local.banner import curl_lines
from orderstream.local.processes.masking import masked
from orderstream.local.processes.state import checkout
from tests.support.shell import paste
from tests.support.system import EXECUTABLE, System, Up, alive, system
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)

# Nothing listens on this port, so that every request to the network fails at once.
OFFLINE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
EVERY_PROCESS = [
    "api-gateway",
    "console",
    "inventory-worker",
    "kafka",
    "order-service",
    "outbox-relay",
    "payment-worker",
    "postgres",
    "valkey",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system for the tests of this module. A test may leave it running or stopped."""
    with system(tmp_path_factory.mktemp("up")) as created:
        yield created


def serving(shared: System, **settings: str) -> Up:
    """Return the `up` that serves. If there is none, or if settings are given, start one with these settings."""
    up = shared.running
    if up is None or settings:
        shared.run("down")
        up = shared.up(**{"REPLICAS_CONSOLE": "1", **settings}).serves()
    assert [name for name in sorted(shared.children) if not name.startswith("kafka-")] == EVERY_PROCESS
    return up


def place_as_the_banner_says(running: System) -> str:
    """Run the curl lines of the banner, and return the id of the order that the last line printed."""
    order_id: str = json.loads(paste(curl_lines(running.base_url)).strip().splitlines()[-1])["orderId"]
    return order_id


def settled(running: System, order_id: str) -> str:
    """Wait until the order is settled, and return its status."""

    def status() -> str | None:
        answer = httpx.get(f"{running.base_url}/orders/{order_id}", timeout=10)
        return str(answer.json()["status"]) if answer.status_code == 200 else None

    return str(wait_until(status, 30, f"order {order_id} settles"))


def test_a_stopped_system_starts_without_a_network_and_keeps_its_data(shared: System) -> None:
    first = serving(shared)
    order_id = place_as_the_banner_says(shared)
    assert settled(shared, order_id) == "CONFIRMED"
    stock = shared.run("stock", "list").stdout.split()
    assert stock[-3:] == ["SKU-1", "99", "1"]
    children = shared.children
    first.interrupt()
    assert first.ends() == 0
    stops = [line.split(":")[0] for line in first.said.splitlines() if line.startswith("Stopping ")]
    assert stops[0] == "Stopping api-gateway"
    assert set(stops[1].removeprefix("Stopping ").split(", ")) == {
        "console",
        "inventory-worker",
        "order-service",
        "outbox-relay",
        "payment-worker",
    }
    assert set(stops[2].removeprefix("Stopping ").split(", ")) == {"kafka", "postgres", "valkey"}
    assert alive(children) == []

    serving(shared, **OFFLINE)
    assert settled(shared, order_id) == "CONFIRMED"
    assert shared.run("stock", "list").stdout.split()[-3:] == ["SKU-1", "99", "1"]


def test_a_second_up_prints_the_banner_of_the_running_system(shared: System) -> None:
    first = serving(shared)
    again = shared.run("up")
    assert again.returncode == 0
    assert curl_lines(shared.base_url) in again.stdout
    assert first.process.poll() is None
    (address,) = re.findall(r"http://\S+/enter\?token=\S+", again.stdout)
    assert address in first.said
    with httpx.Client(trust_env=False) as browser:
        assert browser.get(address).status_code == 200
        assert browser.get(shared.urls["CONSOLE_URL"]).status_code == 200
    assert httpx.get(shared.urls["CONSOLE_URL"], trust_env=False).status_code == 401


def test_the_commands_env_status_and_logs_work_on_a_running_system(shared: System) -> None:
    serving(shared)
    exported = shared.run("env").stdout
    script = f'{exported}\nprintf "%s\\n" "$BASE_URL"; "{EXECUTABLE}" up'
    assert paste(script, shared.environment({})).startswith(f"{shared.base_url}\n")
    assert {line.split("=")[0] for line in exported.splitlines()} == {
        "export POSTGRES_URL",
        "export REDIS_URL",
        "export KAFKA_BROKERS",
        "export KAFKA_OPTIONS",
        "export BASE_URL",
        "export CONSOLE_URL",
    }
    status = shared.run("status").stdout
    assert all(name in status for name in EVERY_PROCESS)
    # A service that gets no CPU for a second does not answer in time.
    wait_until(lambda: shared.run("status").stdout.count("healthy") == 6, 30, "every service and the console answer")
    assert "ready to accept connections" in shared.run("logs", "postgres").stdout
    assert shared.run("logs", "no-such-thing").returncode == 1
    assert shared.run("reset").returncode == 1


def test_a_second_system_with_replicas_and_a_given_server_runs_beside_the_first(shared: System, tmp_path: Path) -> None:
    serving(shared)
    run = shared.state.read().run
    assert run is not None
    given = run.urls["REDIS_URL"]
    with system(tmp_path) as other:
        up = other.up(REPLICAS_API_GATEWAY="2", REPLICAS_PAYMENT_WORKER="2", REDIS_URL=given).serves()
        assert given not in up.said
        assert masked(given) in up.said
        assert {"api-gateway-2", "payment-worker-2"} <= set(other.children)
        assert "valkey" not in other.children
        mine, theirs = place_as_the_banner_says(shared), place_as_the_banner_says(other)
        assert settled(shared, mine) == settled(other, theirs) == "CONFIRMED"
        assert other.run("stock", "list").stdout.split()[-3:] == ["SKU-1", "99", "1"]
        assert not set(shared.state.read().ports.values()) & set(other.state.read().ports.values())


def test_after_kill_9_the_next_up_ends_the_processes_left_behind_and_starts(shared: System) -> None:
    first = serving(shared)
    children = shared.children
    urls = dict(line.removeprefix("export ").split("=", 1) for line in shared.run("env").stdout.splitlines())
    own = {name: url.strip("'") for name, url in urls.items() if name != "BASE_URL"}
    first.process.kill()
    first.ends()
    assert set(alive(children)) >= set(EVERY_PROCESS)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other_process:
        # After `eval`, the environment has the addresses of these servers. `up` must still start them.
        second = shared.up(REPLICAS_CONSOLE="1", **own).serves()
        assert "Ended what an earlier run left behind: " in second.said
        assert alive(children) == []
        assert {"postgres", "valkey", "kafka"} <= set(shared.children)
        assert other_process.poll() is None
        other_process.kill()


def test_a_process_that_dies_is_restarted_and_its_last_lines_are_shown(shared: System) -> None:
    up = serving(shared)
    for name in ("outbox-relay", "postgres", "kafka"):
        os.kill(shared.children[name].pid, signal.SIGKILL)
        up.says(f"{name} is back")
        assert f"{name} was ended by SIGKILL\n  | " in up.said
    order_id = place_as_the_banner_says(shared)
    assert settled(shared, order_id) == "CONFIRMED"


def test_a_second_ctrl_c_kills_the_processes_that_still_run(shared: System) -> None:
    up = serving(shared)
    children = shared.children
    os.kill(children["payment-worker"].pid, signal.SIGSTOP)
    up.interrupt()
    up.says("waiting for the work in hand")
    up.interrupt()
    assert up.ends(15) == 130
    assert "Killing payment-worker" in up.said
    assert alive(children) == []


def test_ctrl_c_during_the_start_leaves_no_process(shared: System) -> None:
    shared.run("down")
    up = shared.up()
    wait_until(lambda: "kafka" in shared.children, 60, "Kafka is started")
    children = shared.children
    up.interrupt()
    assert up.ends() == 0
    assert alive(children) == []
    assert "# Read it back" not in up.said


def test_up_exits_with_1_when_a_process_dies_too_often(shared: System) -> None:
    up = serving(shared, RESTARTS_PER_MINUTE="1")
    children = shared.children
    os.kill(children["outbox-relay"].pid, signal.SIGKILL)
    up.says("outbox-relay is back")
    os.kill(shared.children["outbox-relay"].pid, signal.SIGKILL)
    assert up.ends() == 1
    assert "outbox-relay died 2 times within a minute; giving up" in up.said
    assert alive(children) == []


def test_up_detach_returns_when_everything_serves_and_down_stops_it(shared: System) -> None:
    shared.run("down")
    started = shared.run("up", "-d")
    assert started.returncode == 0
    assert curl_lines(shared.base_url) in started.stdout
    assert httpx.get(f"{shared.base_url}/readyz", timeout=10).status_code == 200
    children = shared.children
    again = shared.run("up", "-d")
    assert again.returncode == 0
    assert curl_lines(shared.base_url) in again.stdout
    assert shared.children == children
    assert shared.run("down").returncode == 0
    assert alive(children) == []
    assert shared.run("status").returncode == 1


def test_a_taken_port_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with system(tmp_path) as created, socket.create_server(("127.0.0.1", created.port)):
        up = created.up(**OFFLINE)
        assert up.ends() == 1
        assert f"Port {created.port} is taken by pid {os.getpid()} (" in up.said
        assert sorted(path.name for path in created.state.root.iterdir()) == ["lock", "logs"]


# A checkout without fetched jars


@pytest.fixture
def fresh_checkout(tmp_path: Path) -> Iterator[System]:
    """A system of a copy of the sources, which has fetched nothing yet."""
    for name in ("src", "db"):
        shutil.copytree(checkout() / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(checkout() / "pyproject.toml", tmp_path)
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'src')!r}); from orderstream.cli import main; main()"
    with system(tmp_path, [sys.executable, "-c", program]) as created:
        yield created


def test_ctrl_c_ends_a_download_that_hangs(fresh_checkout: System) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        up = fresh_checkout.up(**dict.fromkeys(OFFLINE, proxy))
        up.says("fetching Kafka: 0 of 46 jars")
        children = fresh_checkout.children
        up.interrupt()
        assert up.ends(20) == 0
        assert alive(children) == []


def test_without_a_network_up_names_the_file_that_it_cannot_download(fresh_checkout: System) -> None:
    up = fresh_checkout.up(**OFFLINE)
    assert up.ends() == 1
    assert "cannot fetch " in up.said
    assert fresh_checkout.children == {}
