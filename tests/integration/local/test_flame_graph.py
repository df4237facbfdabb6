"""`make profile` draws a flame graph of a running service, or says why it cannot."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orderstream.local.processes.pids import start_time
from orderstream.local.processes.state import ChildRecord, Run, StateDir, StateRecord
from tests.load import flame_graph
from tests.load.flame_graph import NO_STACK, NOT_PERMITTED

SPIN = "def spin():\n    while True:\n        pass\nprint(flush=True)\nspin()"


def _profile(capsys: pytest.CaptureFixture[str], service: str) -> tuple[int, str, str]:
    """Return the exit code, the output and the errors of `make profile`, for 2 s."""
    code = flame_graph.main([service, "--seconds", "2"])
    said = capsys.readouterr()
    return code, said.out.strip(), said.err.strip()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    """The state directory of no stack."""
    monkeypatch.setenv("ORDERSTREAM_STATE", str(tmp_path / "state"))
    created = StateDir(tmp_path / "state")
    created.open()
    return created


@pytest.fixture
def stack(state: StateDir) -> Iterator[None]:
    """A stack whose payment-worker spins in a function, beside its servers."""
    with state.lock(), subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as spinning:
        assert spinning.stdout is not None
        assert spinning.stdout.readline() == b"\n"
        children = [
            ChildRecord(name, spinning.pid, start_time(spinning.pid) or "", signal.SIGTERM, 0, "")
            for name in ("postgres", "kafka", "payment-worker-1")
        ]
        state.write(StateRecord(run=Run(os.getpid(), start_time(os.getpid()) or "", children=children)))
        yield
        spinning.kill()


@pytest.mark.usefixtures("state")
def test_without_a_stack_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert _profile(capsys, "payment-worker") == (1, "", NO_STACK)


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("service", ["payment", "kafka", "order-service"])
def test_an_unknown_service_is_refused_with_the_names_of_the_others(
    capsys: pytest.CaptureFixture[str], service: str
) -> None:
    expected = f"No service {service!r} runs. These run: payment-worker-1"
    assert _profile(capsys, service) == (1, "", expected)


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("seconds", ["0", "601", "x"])
def test_an_impossible_time_is_refused(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        flame_graph.main(["payment-worker", "--seconds", seconds])
    assert "--seconds" in capsys.readouterr().err


@pytest.mark.usefixtures("stack")
def test_the_picture_shows_the_function_that_uses_the_cpu(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine may forbid to read other processes. Then the message says how to permit it."""
    code, said, refused = _profile(capsys, "payment-worker")
    if code:
        assert refused == NOT_PERMITTED
    else:
        assert said == str(state.root / "profile" / "payment-worker-1.svg")
        assert "spin" in Path(said).read_text(encoding="utf-8")


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize(
    ("reason", "expected"),
    [("Error: Permission Denied: run it as root", NOT_PERMITTED), ("Error: no such process", "Error: no such process")],
)
def test_a_refusal_of_the_kernel_is_explained(
    state: StateDir,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
    expected: str,
) -> None:
    spy = state.root / "py-spy"
    spy.write_text(f"#!/bin/sh\necho '{reason}' >&2\nexit 1\n")
    spy.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(state.root / "python"))
    assert _profile(capsys, "payment-worker") == (1, "", expected)
