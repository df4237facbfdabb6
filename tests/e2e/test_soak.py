"""A short soak: every kind of order during some of the faults, and then every check. `make soak` is longer."""

import secrets
from pathlib import Path

import pytest

from tests.load.soak import checks, faults
from tests.load.soak.__main__ import soak

SECONDS = 30
RATE = 60
FAULTS = (
    "kill -9 payment-worker",
    "kill -9 Kafka",
    "kill -9 Postgres",
    "kill -9 Valkey",
    "kill -9 one of every service at once",
)


@pytest.mark.timeout(400)
def test_every_check_holds_after_a_short_soak(tmp_path: Path) -> None:
    plan = {name: faults.ALL[name] for name in FAULTS}
    figures, results = soak(tmp_path / "state", SECONDS, RATE, seed=secrets.randbelow(1 << 31), plan=plan)
    assert not any(results.values()), checks.table(figures, results)
    for kind in ("POST: 201", "cancel: 202", "GET: 200", "hostile: 400"):
        assert kind in figures["answers"], "the load did not contain this kind of request"
