"""`orderstream up` through the real executable and on the real parts: start, stop, start again, and everything that
goes wrong between."""

import os
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
from tests.e2e.stack import EXECUTABLE, Stack, Up, alive, order_of, stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(400)

# Nothing listens there: whoever asks the network is refused at once.
OFFLINE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
EVERY_PROCESS = [
    "api-gateway",
    "inventory-worker",
    "kafka",
    "order-service",
    "outbox-relay",
    "payment-worker",
    "postgres",
    "valkey",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for the tests of this module, which leave it stopped or not as they like."""
    with stack(tmp_path_factory.mktemp("up")) as made:
        yield made


def serving(made: Stack, **settings: str) -> Up:
    """The `up` that serves, started when there is none (with these settings, where they are given)."""
    up = made.running
    if up is None or settings:
        made.run("down")
        up = made.up(**settings).serves()
    assert [name for name in sorted(made.children) if not name.startswith("kafka-")] == EVERY_PROCESS
    return up


def pasted(made: Stack) -> "subprocess.CompletedProcess[str]":
    """Paste the banner's curl lines into bash."""
    return subprocess.run(
        ["bash", "-c", curl_lines(made.base_url)], capture_output=True, text=True, timeout=30, check=True
    )


def settled(made: Stack, order_id: str) -> str:
    """Wait until the order is settled and return its status."""

    def status() -> str | None:
        answer = httpx.get(f"{made.base_url}/orders/{order_id}", timeout=10)
        return str(answer.json()["status"]) if answer.status_code == 200 else None

    return str(wait_until(status, 30, f"order {order_id} did not settle"))


def test_first_start_ctrl_c_and_offline_start_with_the_state_of_the_first(shared: Stack) -> None:
    first = serving(shared)
    order_id = order_of(pasted(shared))["orderId"]
    assert settled(shared, order_id) == "CONFIRMED"
    stock = shared.run("stock", "list").stdout.split()
    assert stock[-3:] == ["SKU-1", "99", "1"]
    children = shared.children
    first.interrupt()
    assert first.ends() == 0
    stops = [line.split(":")[0] for line in first.said.splitlines() if line.startswith("Stopping ")]
    assert stops[0] == "Stopping api-gateway"
    assert set(stops[1].removeprefix("Stopping ").split(", ")) == {
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


def test_up_when_it_is_up_prints_the_banner(shared: Stack) -> None:
    first = serving(shared)
    again = shared.run("up")
    assert again.returncode == 0
    assert curl_lines(shared.base_url) in again.stdout
    assert first.process.poll() is None


def test_env_status_and_logs_of_a_running_stack(shared: Stack) -> None:
    serving(shared)
    exported = shared.run("env").stdout
    script = f'{exported}\nprintf "%s\\n" "$BASE_URL"; "{EXECUTABLE}" up'
    again = subprocess.run(
        ["bash", "-c", script], env=shared.environment({}), capture_output=True, text=True, timeout=60, check=True
    )
    assert again.stdout.startswith(f"{shared.base_url}\n")
    assert {line.split("=")[0] for line in exported.splitlines()} == {
        "export POSTGRES_URL",
        "export REDIS_URL",
        "export KAFKA_BROKERS",
        "export KAFKA_OPTIONS",
        "export BASE_URL",
    }
    status = shared.run("status").stdout
    assert all(name in status for name in EVERY_PROCESS)
    assert status.count("healthy") == 5
    assert "ready to accept connections" in shared.run("logs", "postgres").stdout
    assert shared.run("logs", "no-such-thing").returncode == 1
    assert shared.run("reset").returncode == 1


def test_two_stacks_at_once_one_with_more_replicas_and_a_given_part(shared: Stack, tmp_path: Path) -> None:
    serving(shared)
    run = shared.state.read().run
    assert run is not None
    given = run.urls["REDIS_URL"]
    with stack(tmp_path) as other:
        up = other.up(REPLICAS_API_GATEWAY="2", REPLICAS_PAYMENT_WORKER="2", REDIS_URL=given).serves()
        assert given not in up.said
        assert masked(given) in up.said
        assert {"api-gateway-2", "payment-worker-2"} <= set(other.children)
        assert "valkey" not in other.children
        mine, theirs = (order_of(pasted(one))["orderId"] for one in (shared, other))
        assert settled(shared, mine) == settled(other, theirs) == "CONFIRMED"
        assert other.run("stock", "list").stdout.split()[-3:] == ["SKU-1", "99", "1"]
        assert not set(shared.state.read().ports.values()) & set(other.state.read().ports.values())


def test_after_kill_9_the_next_up_ends_its_own_leftovers_and_starts(shared: Stack) -> None:
    first = serving(shared)
    children = shared.children
    urls = dict(line.removeprefix("export ").split("=", 1) for line in shared.run("env").stdout.splitlines())
    own = {name: url.strip("'") for name, url in urls.items() if name != "BASE_URL"}
    first.process.kill()
    first.ends()
    assert set(alive(children)) >= set(EVERY_PROCESS)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        # Its own addresses in the environment, as after `eval`, do not keep it from starting its parts.
        second = shared.up(**own).serves()
        assert "Ended what an earlier run left behind: " in second.said
        assert alive(children) == []
        assert {"postgres", "valkey", "kafka"} <= set(shared.children)
        assert stranger.poll() is None
        stranger.kill()


def test_a_child_that_dies_is_restarted_and_its_last_lines_are_shown(shared: Stack) -> None:
    up = serving(shared)
    for name in ("outbox-relay", "postgres", "kafka"):
        os.kill(shared.children[name].pid, signal.SIGKILL)
        up.says(f"{name} is back")
        assert f"{name} was ended by SIGKILL\n  | " in up.said
    order_id = order_of(pasted(shared))["orderId"]
    assert settled(shared, order_id) == "CONFIRMED"


def test_a_second_ctrl_c_forces_what_the_first_one_waits_for(shared: Stack) -> None:
    up = serving(shared)
    children = shared.children
    os.kill(children["payment-worker"].pid, signal.SIGSTOP)
    up.interrupt()
    up.says("waiting for the work in hand")
    up.interrupt()
    assert up.ends(15) == 130
    assert "Killing payment-worker" in up.said
    assert alive(children) == []


def test_ctrl_c_while_starting_leaves_nothing(shared: Stack) -> None:
    shared.run("down")
    up = shared.up()
    wait_until(lambda: "kafka" in shared.children, 60, "it did not begin")
    children = shared.children
    up.interrupt()
    assert up.ends() == 0
    assert alive(children) == []
    assert "# Read it back" not in up.said


def test_a_child_that_keeps_dying_ends_up_with_1(shared: Stack) -> None:
    up = serving(shared, RESTARTS_PER_MINUTE="1")
    children = shared.children
    os.kill(children["outbox-relay"].pid, signal.SIGKILL)
    up.says("outbox-relay is back")
    os.kill(shared.children["outbox-relay"].pid, signal.SIGKILL)
    assert up.ends() == 1
    assert "outbox-relay died 2 times within a minute; giving up" in up.said
    assert alive(children) == []


def test_detached_and_down(shared: Stack) -> None:
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


def test_a_taken_port_is_said_first_with_who_holds_it(tmp_path: Path) -> None:
    with stack(tmp_path) as made, socket.create_server(("127.0.0.1", made.port)):
        up = made.up(**OFFLINE)
        assert up.ends() == 1
        assert f"Port {made.port} is taken by pid {os.getpid()} (" in up.said
        assert sorted(path.name for path in made.state.root.iterdir()) == ["lock", "logs"]


# A checkout without fetched jars


@pytest.fixture
def fresh_checkout(tmp_path: Path) -> Iterator[Stack]:
    """A stack of a copy of the sources, which has fetched nothing yet."""
    for name in ("src", "db"):
        shutil.copytree(checkout() / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(checkout() / "pyproject.toml", tmp_path)
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'src')!r}); from orderstream.cli import main; main()"
    with stack(tmp_path, [sys.executable, "-c", program]) as made:
        yield made


def test_ctrl_c_works_while_the_network_hangs(fresh_checkout: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        up = fresh_checkout.up(**dict.fromkeys(OFFLINE, proxy))
        up.says("fetching Kafka: 0 of 46 jars")
        children = fresh_checkout.children
        up.interrupt()
        assert up.ends(20) == 0
        assert alive(children) == []


def test_without_a_network_it_says_what_cannot_be_fetched(fresh_checkout: Stack) -> None:
    up = fresh_checkout.up(**OFFLINE)
    assert up.ends() == 1
    assert "cannot fetch " in up.said
    assert fresh_checkout.children == {}
