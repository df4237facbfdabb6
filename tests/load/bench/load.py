"""Runs k6 with `load.js` and reads its counters."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec

SCRIPT = Path(__file__).with_name("load.js")
LIMIT_SECONDS = 300
Phase = Literal["paced", "saturated"]


class Load(msgspec.Struct, frozen=True):
    """The counters of one run of k6. Times are in milliseconds. `cpu_seconds` is the CPU that k6 itself used."""

    accepted: int
    refused: int
    unanswered: int
    place: dict[str, float]
    settle: dict[str, float]
    cpu_seconds: float


def run(phase: Phase, base_url: str, seconds: int, **variables: str) -> Load:
    """Load the system at `base_url`. Raises subprocess.SubprocessError if k6 fails."""
    given = {"PHASE": phase, "BASE_URL": base_url, "DURATION": f"{seconds}s", **variables}
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.json"
        command = [str(Path(sys.executable).with_name("k6")), "run", "--quiet", "--no-usage-report"]
        command += [f"--summary-export={summary}", *(f"--env={name}={value}" for name, value in given.items())]
        before = _children_cpu_seconds()
        subprocess.run(
            [*command, str(SCRIPT)],
            check=True,
            timeout=LIMIT_SECONDS,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"GOGC": "400"},  # less garbage collection in k6 leaves more CPU to the system
        )
        return _read(summary.read_bytes(), _children_cpu_seconds() - before)


def _read(summary: bytes, cpu_seconds: float) -> Load:
    metrics: dict[str, dict[str, Any]] = msgspec.json.decode(summary)["metrics"]

    def count(name: str) -> int:
        return int(metrics.get(name, {}).get("count", 0))

    return Load(
        accepted=count("accepted"),
        refused=count("refused"),
        unanswered=count("unanswered"),
        place=metrics.get("place_ms", {}),
        settle=metrics.get("settle_ms", {}),
        cpu_seconds=cpu_seconds,
    )


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
