"""The simulator as a process: what survives kill -9, what makes it refuse to start, and how it stops."""

import json
import signal
import subprocess
import threading
from pathlib import Path

import httpx

from tests.support.processes import Process
from tests.support.simulators import Simulator, environment
from tests.support.system import EXECUTABLE, free_port
from tests.support.waiting import wait_until

CLIENTS = 8
CHARGES_BEFORE_THE_KILL = 150


def start(folder: Path, port: int, **settings: str) -> Process:
    """Start a simulator with its ledger in `folder`."""
    with (folder / "log").open("ab") as log:
        return Process(
            [EXECUTABLE, "payment-simulator"], env=environment(folder, port) | settings, stdout=log, stderr=log
        )


def ready(process: Process, port: int) -> Simulator:
    """Wait until it answers."""
    running = Simulator(f"http://127.0.0.1:{port}")
    with process.watched("payment-simulator"):
        wait_until(lambda: running.is_ready, 30, "the simulator answers")
    return running


def place_until_killed(url: str, number: int, answered: dict[str, str]) -> None:
    """Authorize one payment after the other, and void every third, until the server has gone."""
    with httpx.Client(base_url=url, timeout=10) as http:
        for count in range(100_000):
            key = f"{number}-{count}"
            try:
                body = {"amount": "1.00", "currency": "EUR"}
                http.post("/v1/payments", json=body, headers={"Idempotency-Key": key}).raise_for_status()
                answered[key] = "authorized"
                if count % 3 == 0:
                    answered.pop(key)
                    http.post(f"/v1/payments/{key}/void").raise_for_status()
                    answered[key] = "voided"
            except httpx.TransportError:
                return


def test_kill_9_loses_no_answered_charge_and_no_answered_void(tmp_path: Path) -> None:
    port, answered = free_port(), dict[str, str]()
    for round_number in range(2):
        process = start(tmp_path, port)
        url = ready(process, port).url
        clients = [
            threading.Thread(target=place_until_killed, args=(url, round_number * CLIENTS + number, answered))
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        enough = (round_number + 1) * CHARGES_BEFORE_THE_KILL
        wait_until(lambda enough=enough: len(answered) >= enough, 60, "payments are answered")  # type: ignore[misc]
        process.kill()
        process.ends()
        for client in clients:
            client.join()
    process = start(tmp_path, port)
    with httpx.Client(base_url=ready(process, port).url) as http:
        listed: dict[str, dict[str, object]] = {}
        after = ""
        while after is not None:
            page = http.get("/v1/payments", params={"after": after, "limit": 1000} if after else {"limit": 1000}).json()
            listed |= {payment["key"]: payment for payment in page["payments"]}
            after = page["next"]
    process.terminate()
    assert process.ends() == 0
    assert {key: listed[key]["status"] for key in answered} == answered
    assert {payment["charges"] for payment in listed.values()} == {1}
    held = {"authorized": "1.00", "voided": "0.00"}
    assert all(payment["held"] == held[str(payment["status"])] for payment in listed.values())


def test_a_pending_payment_is_decided_after_a_restart(tmp_path: Path) -> None:
    port = free_port()
    faults = {"SIMULATOR_FAULTS": json.dumps({"pendingRate": 1, "pendingSeconds": 0.5})}
    process = start(tmp_path, port, **faults)
    assert ready(process, port).authorize("a") == "pending"
    process.kill()
    process.ends()
    process = start(tmp_path, port, **faults)
    running = ready(process, port)
    wait_until(lambda: running.authorize("a") == "authorized", 10, "the payment is decided")
    process.terminate()
    assert process.ends() == 0


def refusal(folder: Path, port: int, **settings: str) -> tuple[int, str]:
    """Return the exit code and the output of a simulator that does not start."""
    done = subprocess.run(
        [EXECUTABLE, "payment-simulator"],
        env=environment(folder, port) | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_ledger_or_a_port_that_cannot_be_used_ends_the_start_with_one_line(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "ledger.db").write_bytes(b"no ledger" * 1_000)
    process = start(tmp_path, port)
    ready(process, port)
    refusals = {
        "file is not a database": refusal(tmp_path / "corrupt", free_port()),
        "another process uses it": refusal(tmp_path, free_port()),
        "cannot_listen": refusal(tmp_path / "corrupt", port, SIMULATOR_LEDGER=str(tmp_path / "other.db")),
    }
    for text, (code, output) in refusals.items():
        assert (code, len(output.splitlines())) == (1, 1), output
        assert text in output
    process.terminate()
    assert process.ends() == 0


def test_wrong_faults_in_the_settings_are_all_named(tmp_path: Path) -> None:
    code, output = refusal(tmp_path, free_port(), SIMULATOR_FAULTS='{"hangRate": 2, "slow": 1}')
    assert code == 2
    assert "SIMULATOR_FAULTS: hangRate" in output
    assert "SIMULATOR_FAULTS: slow" in output
    assert not (tmp_path / "ledger.db").exists()


def test_it_stops_although_a_call_hangs(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, port, SIMULATOR_FAULTS='{"stuckKeys": ["a"]}')
    running = ready(process, port)
    errors: list[Exception] = []

    def hang() -> None:
        try:
            running.authorize("a")
        except httpx.HTTPError as error:
            errors.append(error)

    client = threading.Thread(target=hang)
    client.start()
    assert running.authorize("b") == "authorized"
    process.send_signal(signal.SIGINT)
    assert process.ends() == 0
    client.join()
    assert len(errors) == 1
