"""The play desk and the pages of processes, on a local stack of this test: a gateway, the simulator and a sleeper."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from orderstream.console.local_stack import LocalStack
from orderstream.console.play import runner
from orderstream.local.processes.child import Child, Command
from orderstream.local.processes.pids import start_time
from orderstream.local.processes.registry import ProcessRegistry
from orderstream.local.processes.state import Run, StateDir, StateRecord
from orderstream.postgres.connect import connect
from orderstream.settings import Settings
from tests.support.consoles import RunningConsole, running_console
from tests.support.databases import Databases
from tests.support.servers import Servers
from tests.support.simulators import Simulator, simulator
from tests.support.system import EXECUTABLE, free_port
from tests.support.waiting import wait_until
from tests.unit.local.conftest import SLEEPER, started

SETTLE = (
    "UPDATE orders SET status = 'FAILED', failure_reason = 'OUT_OF_STOCK', stock = 'failed' WHERE status <> 'FAILED'"
)


class Stack:
    """A console with its local stack."""

    def __init__(self, console: RunningConsole, registry: ProcessRegistry, bank: Simulator, postgres_url: str) -> None:
        self.console = console
        self.registry = registry
        self.bank = bank
        self.postgres_url = postgres_url

    def faults(self) -> dict[str, Any]:
        """Return the faults of the simulator."""
        return dict(httpx.get(f"{self.bank.url}/simulator/faults", timeout=10).json())


@pytest.fixture(scope="module")
def stack(databases: Databases, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A console whose `up` is this test."""
    folder = tmp_path_factory.mktemp("stack")
    state = StateDir(folder / "state")
    state.open()
    with ExitStack() as parts:
        postgres_url = parts.enter_context(databases.migrated())
        bank = parts.enter_context(simulator(_folder(folder / "bank")))
        parts.enter_context(state.lock())
        port, pages_port = free_port(), free_port()
        base_url = f"http://127.0.0.1:{port}"
        urls = {"PAYMENT_SIMULATOR_URL": bank.url, "BASE_URL": base_url, "POSTGRES_URL": postgres_url}
        run = Run(os.getpid(), start_time(os.getpid()) or "", "up", urls)
        registry = ProcessRegistry(state, StateRecord(run=run))
        parts.callback(_kill_all, registry)
        gateway = Child("api-gateway", state.log("api-gateway"), registry)
        given = {
            **servers.environment,
            "POSTGRES_URL": postgres_url,
            "PORT": str(port),
            "METRICS_PORT": str(pages_port),
        }
        gateway.start(Command([str(EXECUTABLE), "api-gateway"], {**os.environ, **given}, Path("/")))
        wait_until(lambda: "started" in "".join(gateway.last_lines()), 60, "the gateway serves")
        settings = Settings.model_validate({"postgres_url": postgres_url, "base_url": base_url})
        console = parts.enter_context(running_console(settings, LocalStack(state)))
        yield Stack(console, registry, bank, postgres_url)


def _kill_all(registry: ProcessRegistry) -> None:
    for child in registry.children:
        child.kill()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _figures(stack: Stack) -> dict[str, Any]:
    return dict(stack.console.get("/api/play")["run"]["figures"])


def test_orders_are_placed_followed_and_stopped(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "EVERY_SECONDS", 0.1)
    console = stack.console
    assert "This console has placed no orders yet" in console.page("/play")
    body = {
        "rate": 50,
        "seconds": 60,
        "mix": {"well": 1, "repeated": 1, "cancelled": 1, "declined": 0},
        "reason": "look",
    }
    action_id = console.post("/api/play/start", body)["actionId"]
    assert console.post("/api/play/start", body, 409)["type"].endswith("play-running")
    wait_until(lambda: _figures(stack)["placed"] >= 20, 60, "twenty orders are placed")
    with connect(stack.postgres_url, "test") as connection:

        def settled() -> bool:
            connection.execute(SETTLE)
            return {outcome["kind"] for outcome in _figures(stack)["outcomes"]} >= {"well", "repeated"}

        wait_until(settled, 60, "the desk sees how the orders end")
        keys = connection.execute("SELECT count(*), count(DISTINCT idempotency_key) FROM orders").fetchone()
        assert keys is not None
        assert keys[0] == keys[1], "a repeated key gives one order"
    found = _figures(stack)
    assert found["keysBroken"] == 0
    assert found["settleP50"] is not None
    assert "FAILED OUT_OF_STOCK" in console.page("/play")
    assert "declinedAmounts" in stack.faults()
    assert stack.faults()["declinedAmounts"] == ["13.13"]
    assert f"/actions/{action_id}" in console.submit("/play/stop", reason="enough")
    action = wait_until(
        lambda: next(
            (
                action
                for action in console.get("/api/actions", kind="play.run")["actions"]
                if action["state"] == "cancelled"
            ),
            None,
        ),
        20,
        "the run is stopped and recorded",
    )
    assert action is not None
    assert action["result"]["stoppedBy"] == "Ada (operator)"
    assert action["parameters"]["mix"] == {"well": 1, "repeated": 1, "cancelled": 1}
    console.post("/api/play/stop", {}, 409)


def test_a_run_ends_by_itself_and_its_form_is_checked(stack: Stack) -> None:
    console = stack.console
    short: Any = {"rate": "50", "minutes": "0.02", "mix-well": "1", "reason": "short"}
    page = console.submit("/play/start", **short)
    assert "play.run" in page
    wait_until(lambda: not console.get("/api/play")["run"]["isRunning"], 20, "the run ends after its time")
    for fields in ({"rate": "51"}, {"rate": "x"}, {"minutes": "31"}, {"mix-well": "-1"}, {"mix-well": "0"}):
        wrong: Any = {"rate": "1", "minutes": "1", "mix-well": "1", **fields}
        console.submit("/play/start", 400, **wrong)
    assert not console.get("/api/play")["run"]["isRunning"]


def test_faults_are_switched_by_presets_and_forms_and_recorded(stack: Stack) -> None:
    console = stack.console
    console.post("/api/play/faults", {"preset": "drops"})
    assert stack.faults()["dropAfterRate"] == 0.4
    assert "bankDown" in console.submit("/play/faults", preset="bankDown")
    assert (stack.faults()["down"], stack.faults()["dropAfterRate"]) == (True, 0.0)
    console.submit("/play/faults", latencyMs="20", latencyP99Ms="", declineRate="0.5", reason="form")
    found = stack.faults()
    assert (found["latencyMs"], found["declineRate"], found["down"]) == (20.0, 0.5, False)
    refused = console.post("/api/play/faults", {"faults": {"declineRate": 2}}, 400)
    assert "declineRate" in refused["detail"]
    console.post("/api/play/faults", {"preset": "gone"}, 400)
    console.post("/api/play/faults", {}, 400)
    console.post("/api/play/faults", {"preset": "well"})
    actions = console.get("/api/actions", kind="play.faults")["actions"]
    assert [(action["subject"], action["state"]) for action in actions] == [
        ("well", "done"), ("faults", "failed"), ("faults", "done"), ("bankDown", "done"), ("drops", "done"),
    ]  # fmt: skip


def test_the_desk_restocks_its_skus(stack: Stack) -> None:
    with connect(stack.postgres_url, "test") as connection:
        connection.execute("UPDATE inventory SET available = 0 WHERE sku = 'PLAY-03'")
        assert stack.console.post("/api/play/restock", {"reason": "x"})["skus"] >= 1
        found = connection.execute("SELECT available FROM inventory WHERE sku = 'PLAY-03'").fetchone()
    assert found == (1_000_000,)


def test_processes_are_listed_signalled_and_their_logs_shown(stack: Stack) -> None:
    console = stack.console
    child = started(Child("kafka", stack.registry._state.log("kafka"), stack.registry), SLEEPER)
    processes = {process["name"]: process for process in console.get("/api/processes")["processes"]}
    assert processes["kafka"]["pid"] == child.pid
    assert processes["api-gateway"]["state"] == "running"
    page = console.page("/processes")
    assert "kafka" in page
    assert "started" in console.page("/processes/api-gateway?level=info")
    assert console.get("/api/processes/kafka/log", limit=1)["lines"][0]["text"] == "ready"
    console.get("/api/processes/gone/log", 404)
    console.get("/api/processes/kafka/log", 400, level="loud")
    console.post("/api/processes/kafka/pause", {"reason": "look"})
    assert "is paused already" in console.submit("/processes/kafka/pause", 409, reason="look")
    assert "process.resume" in console.submit("/processes/kafka/resume", reason="look", back="play")
    console.post("/api/processes/kafka/kill", {"reason": "look"})
    assert child.wait(20)
    assert console.post("/api/processes/kafka/restart", {"reason": "x"}, 409)["detail"].startswith("kafka has ended")
    console.post("/api/processes/up/kill", {"reason": "x"}, 404)
    console.post("/api/processes/api-gateway/kill", {"reason": ""}, 400)
    console.page("/processes/kafka/kill", 405)
    assert console.reader.post("/api/processes/api-gateway/kill", json={"reason": "x"}).status_code == 403
    kinds = [action["kind"] for action in console.get("/api/actions", kind="process")["actions"]]
    assert kinds == ["process.kill", "process.resume", "process.pause"]


def test_without_a_local_stack_the_pages_say_so(stack: Stack) -> None:
    with running_console(Settings.model_validate({"postgres_url": stack.postgres_url})) as console:
        assert "was not started by `orderstream up`" in console.page("/processes")
        for path in ("/api/processes", "/api/play", "/play"):
            assert console.client.get(path).status_code == 404
        for path in ("/api/play/start", "/api/play/faults", "/api/play/restock", "/api/play/stop"):
            assert console.client.post(path, json={"preset": "well"} if "faults" in path else {}).status_code == 404
